"""Stores in which an object has a second name, perhaps inside itself, or claims a size that nothing could hold."""

import pickle
import resource
import subprocess
import sys

import h5py
import pytest

import streamfeat
from streamfeat.verify import verify
from tests.feature_stores import write_store

NAMES = ["01_street", "Abuse/a", "Abuse/b"]


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "out.h5", dict.fromkeys(NAMES, 40))


def run(*arguments):
    """A command that may take neither all memory nor for ever."""
    return subprocess.run(
        [sys.executable, "-m", "streamfeat", *map(str, arguments)], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )


CYCLES = {
    "a hard link in a video": ("01_street/s", lambda f: f["videos"]),
    "a hard link in a folder": ("Abuse/loop", lambda f: f["videos/Abuse"]),
    "a hard link to the root": ("Abuse/loop", lambda f: f["/"]),
    "a soft link": ("Abuse/loop", lambda f: h5py.SoftLink("/videos")),
}


@pytest.mark.parametrize(("name", "target"), CYCLES.values(), ids=CYCLES)
def test_a_folder_within_itself(store, tmp_path, name, target):
    with h5py.File(store, "r+") as file:
        file[f"videos/{name}"] = target(file)
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps(dict.fromkeys(NAMES, [0] * 40)))
    checked = run("verify", store)
    assert checked.returncode == 1 and f"{name}: is a link to something else" in checked.stdout, checked.stderr
    assert "videos    3:" in run("info", store).stdout
    aligned = run("align", store, tmp_path / "gt.pickle")
    assert aligned.returncode == 0, aligned.stderr
    exported = run("export", store, tmp_path / "out", "--layout", "npy")
    assert exported.returncode == 0, exported.stderr
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 3


def test_links_that_multiply(store):
    """Thirty folders, each of which holds the next one twice: a thousand million names."""
    with h5py.File(store, "r+") as file:
        folder = file.create_group("videos/0")
        for _ in range(1, 30):
            below = folder.create_group("x")
            folder["y"] = below
            folder = below
        folder["v"] = file["videos/01_street"]
    found = run("info", store)
    assert found.returncode == 0 and "videos    4" in found.stdout, found.stderr
    assert run("verify", store).returncode == 1


def test_the_names_of_a_store_are_those_of_its_videos(store):
    with h5py.File(store, "r+") as file:
        file["videos/01_street/s"] = file["videos"]
    with streamfeat.open(store) as reader:
        assert list(reader) == NAMES and reader.failures == {}


@pytest.mark.parametrize("size", [10**11, 10**13])
def test_labels_that_were_never_written(store, size):
    with h5py.File(store, "r+") as file:
        labels = file.create_group("videos/Abuse/a/labels")
        labels.attrs["video"] = 0
        labels.create_dataset("frame", shape=(size,), dtype="u1", chunks=(1 << 20,))
        labels.create_dataset("clip", data=[0, 0], dtype="u1")
        file["videos/Abuse/a"].attrs["aligned_clips"] = 2
    said = run("info", store)
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1, said.stderr
    assert f"videos/Abuse/a/labels/frame is said to hold {size} values" in said.stderr
    assert any(name == "Abuse/a" and "none of them was written" in text for name, text in verify(store).problems)
