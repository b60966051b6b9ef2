"""verify finds what is wrong with a store, and compares it with its videos."""

import json
import pickle
import re
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import streamfeat
from streamfeat.align import align
from streamfeat.cli import main
from streamfeat.recipe import Recipe
from streamfeat.verify import VerifyError, verify
from tests.feature_stores import write_store
from tests.media import write_video

NAMES = ["a", "a/below", "deep/b", "short"]


@pytest.fixture
def store(tmp_path):
    store = write_store(tmp_path / "out.h5", dict(zip(NAMES, (100, 40, 64, 9), strict=True)))
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 90, "deep/b": [1] * 64}))
    align(store, tmp_path / "gt.pickle")
    return store


def test_nothing_wrong(store):
    found = verify(store)
    assert found.problems == () and (found.videos, found.clips) == (4, 6 + 2 + 4)


def set_attr(group, key, value):
    group.attrs[key] = value


def move(file, source, destination):
    file[destination] = file[source]
    del file[source]


DAMAGE = {
    "a changed value": (lambda f: f["videos/a/features"].write_direct(np.ones((6, 3, 8), "f4")), "a", "checksum"),
    "a value that is not finite": (
        lambda f: f["videos/deep/b/features"].__setitem__((2, 1, 3), np.nan), "deep/b", "not all finite"),
    "a start frame": (lambda f: f["videos/a/start_frame"].__setitem__(3, 1), "a", "do not start every 16"),
    "the number of frames": (
        lambda f: set_attr(f["videos/a/below"], "frames", 300), "a/below", "its 300 frames give 18"),
    "no number of frames": (lambda f: f["videos/a/below"].attrs.__delitem__("frames"), "a/below", "is missing"),
    "clips of the labels": (lambda f: set_attr(f["videos/a"], "aligned_clips", 6), "a", "align it again"),
    "labels gone": (lambda f: f["videos/a"].__delitem__("labels"), "a", "there are no labels"),
    "another shape": (lambda f: (move(f, "videos/deep/b/features", "old"), f.__delitem__("old"),
                                 f.create_dataset("videos/deep/b/features", data=np.zeros((4, 3, 7), "f4"))),
                      "deep/b", r"not float32 \(clips, \(3, 8\)\)"),
    "an object beside the videos": (lambda f: f.create_group("mine"), "mine", "belongs to no store"),
    "data in a video": (lambda f: f.create_dataset("videos/a/extra", data=[1]), "a/extra", "belongs to no video"),
    "data in a folder": (lambda f: f.create_dataset("videos/deep/x", data=[1]), "deep/x", "belongs to no video"),
    "a video without features": (lambda f: f["videos/short"].__delitem__("features"), "short/start_frame",
                                 "data that belongs to no video"),
    "an empty group": (lambda f: f.create_group("videos/deep/empty"), "deep/empty", "is an empty group"),
    "a link": (lambda f: f["videos"].__setitem__("link", h5py.SoftLink("/nowhere")), "link", "is a link"),
    "a link to another file": (
        lambda f: f["videos"].__setitem__("away", h5py.ExternalLink("/etc/passwd", "/")), "away", "is a link"),
}


@pytest.mark.parametrize(("damage", "name", "said"), DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_found(store, damage, name, said):
    with h5py.File(store, "r+") as file:
        damage(file)
    problems = verify(store).problems
    assert any(found == name and re.search(said, text) for found, text in problems), problems


def test_the_command_exits_with_1(store):
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 0 and result.output.endswith("4 videos, 12 clips: nothing wrong\n")
    with h5py.File(store, "r+") as file:
        file["videos/a/features"][0] = 0
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 1 and "a: its features or start frames are not what was written" in result.output
    result = CliRunner().invoke(main, ["verify", str(store), "--json"])
    assert [name for name, _ in json.loads(result.output)["problems"]] == ["a"]
    result = CliRunner().invoke(main, ["verify", str(store.with_name("gone.h5"))])
    assert result.exit_code == 2 and "no such file" in result.output


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extracted")
    videos = folder / "videos"
    (videos / "deep").mkdir(parents=True)
    write_video(videos / "a.mp4", 18)
    write_video(videos / "deep" / "a.avi", 9, codec="mpeg4")
    recipe = Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
    streamfeat.extract([videos], folder / "out.h5", recipe=recipe, model="vit_tiny", weights="random", device="cpu")
    return folder


def test_against_the_videos(extracted):
    found = verify(extracted / "out.h5", [extracted / "videos"], device="cpu")
    assert found.problems == () and sorted(video.video for video in found.compared) == ["a", "deep/a"]
    assert all(video.smallest_cosine > 0.99999 for video in found.compared)


def test_against_other_videos(extracted, tmp_path):
    shutil.copy(extracted / "out.h5", tmp_path / "out.h5")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 40)
    found = verify(tmp_path / "out.h5", [tmp_path / "videos"], device="cpu")
    assert found.problems == (("a", "extracted anew it has 10 clips, not 4: has the video changed?"),)
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["videos/deep/a/features"][1, 0] = -file["videos/deep/a/features"][1, 0]
    found = verify(tmp_path / "out.h5", [extracted / "videos"], device="cpu")
    said = dict(found.problems)
    assert set(said) == {"deep/a"} and said["deep/a"].startswith("extracted anew its features differ: cosine -")


def test_against_nothing(extracted, tmp_path):
    write_video(tmp_path / "stranger.mp4", 4)
    with pytest.raises(VerifyError, match="none of the videos in"):
        verify(extracted / "out.h5", [tmp_path], device="cpu")
    with pytest.raises(VerifyError, match="no such file"):
        verify(extracted / "out.h5", [tmp_path / "gone"], device="cpu")


def test_against_with_other_weights(tmp_path):
    """A store that says it was made with weights that are not the ones there are now."""
    store = write_store(tmp_path / "out.h5", {"a": 20}, Recipe(image_size=32, upscale_below=None), channels=192)
    write_video(tmp_path / "a.mp4", 20)
    with pytest.raises(VerifyError, match=r"not those that the store was made with .*--weights"):
        verify(store, [tmp_path / "a.mp4"], device="cpu")
