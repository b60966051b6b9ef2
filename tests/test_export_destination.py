"""The folder that an export goes to: what is there already, what may not be, and what a kill leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamfeat.align import align
from streamfeat.export import ExportError, ExportRefused, export
from streamfeat.files import UnsafeName
from tests.exports import LAYOUT_NAMES, digests, invoke, labelled_store, write_lists
from tests.feature_stores import write_store


@pytest.fixture
def store(tmp_path):
    return labelled_store(tmp_path / "out.h5")


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_the_same_export_again_keeps_what_is_there_and_adds_what_is_not(store, lists, tmp_path, layout):
    options = {"layout": layout, "stats": ["mean"], **lists}
    exported = export(store, tmp_path / "out", **options)
    before, files = digests(tmp_path / "out"), exported.written
    assert len(before) == files and (exported.kept, exported.stale) == (0, ())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = export(store, tmp_path / "out", **options)
    assert (again.written, again.kept) == (0, files) and digests(tmp_path / "out") == before
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    gone = sorted(times)[0]
    gone.unlink()
    again = export(store, tmp_path / "out", **options)
    assert (again.written, again.kept) == (1, files - 1) and digests(tmp_path / "out") == before
    assert export(store, tmp_path / "out", overwrite=True, **options).written == files


#: what makes another export of the same store, and a file in which it shows, for each layout
OTHERWISE = {
    "npy": ({"stats": None}, "testing/01_0014.npy"),
    "fed-wsvad": ({"stats": ["max"]}, "shanghaitech/features_video/i3d/combine/01_0014/feature.npy"),
    "rtfm": ({"stats": ["max"]}, "features/testing/01_0014_i3d.npy"),
    "xd": ({"stats": ["max", "mean"], "flatten": True}, "features/testing/01_0014__0.npy"),
    "safetensors": ({"stats": ["mean", "std"]}, "features-00001-of-00001.safetensors"),
}


@pytest.mark.parametrize("layout", OTHERWISE)
def test_an_older_export_that_differs_is_refused(store, lists, tmp_path, layout):
    changed, first = OTHERWISE[layout]
    export(store, tmp_path / "out", **{"layout": layout, "stats": ["mean"], **lists})
    old = digests(tmp_path / "out")
    options = {"layout": layout, "stats": ["mean"], **lists, **changed}
    (tmp_path / "out" / first).with_name("another.npy").write_bytes(b"")
    kept = digests(tmp_path / "out")
    with pytest.raises(ExportRefused, match=rf"there (is|are) not what this export would write, {first} first: .*--ov"):
        export(store, tmp_path / "out", **options)
    assert digests(tmp_path / "out") == kept, "nothing changed"
    export(store, tmp_path / "out", overwrite=True, **options)
    export(store, tmp_path / "fresh", **options)
    new = digests(tmp_path / "out")
    assert {name: new[name] for name in old if not name.endswith(".list")} == {
        name: digest for name, digest in digests(tmp_path / "fresh").items() if not name.endswith(".list")}


@pytest.mark.parametrize(("layout", "first"), [
    ("rtfm", "features/testing/01_0014_i3d.npy"), ("xd", "features/testing/01_0014__0.npy"),
    ("fed-wsvad", "shanghaitech/features_video/i3d/combine/01_0014/feature.npy"),
])
def test_other_labels_are_another_export(store, lists, tmp_path, layout, first):
    export(store, tmp_path / "out", layout=layout, stats=["mean"], **lists)
    before = digests(tmp_path / "out")
    labels = {"01_001": [0] * 96, "01_0014": [1] * 70, "01_0015": [0] * 40, "02_0128": [0] * 64}
    (tmp_path / "gt.json").write_text(json.dumps(labels))
    align(store, tmp_path / "gt.json")
    with pytest.raises(ExportRefused, match=f"[234] files there are not what this export would write, {first} first"):
        export(store, tmp_path / "out", layout=layout, stats=["mean"], **lists)
    assert digests(tmp_path / "out") == before


def test_files_cut_off_longer_or_no_files_are_not_what_would_be_written(store, tmp_path):
    export(store, tmp_path / "npy", layout="npy")
    path = tmp_path / "npy/testing/01_0014.npy"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", b"", b"mine"):
        path.write_bytes(content)
        with pytest.raises(ExportRefused, match="1 file there is not what this export would write, testing/01_0014"):
            export(store, tmp_path / "npy", layout="npy")
        assert path.read_bytes() == content
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ExportRefused, match=r"testing/01_0014\.npy first"):
        export(store, tmp_path / "npy", layout="npy")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ExportRefused, match=r"testing/01_0014\.npy first"):
        export(store, tmp_path / "npy", layout="npy")
    path.unlink()
    path.mkdir()
    with pytest.raises(ExportError, match="is a folder, where a file would be written"):
        export(store, tmp_path / "npy", layout="npy", overwrite=True)


@pytest.mark.parametrize(("layout", "file"), [
    ("npy", "old/v1.npy"), ("rtfm", "features/v1_i3d.npy"), ("rtfm", "gt.npy"), ("xd", "train.list"),
    ("fed-wsvad", "shanghaitech/features_video/i3d/combine/v1/feature.npy"),
    ("fed-wsvad", "shanghaitech/train_split.txt"),
    ("safetensors", "features-00001-of-00009.safetensors"),
])
def test_files_of_an_older_export_are_told_and_left(tmp_path, layout, file):
    """As of a video that left the store, or of a list that is no longer given."""
    store = write_store(tmp_path / "out.h5", {"v2": 40})
    stale = tmp_path / "out" / file
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    (tmp_path / "out" / "notes.txt").write_text("of somebody else")
    exported = export(store, tmp_path / "out", layout=layout, stats=["mean"])
    assert exported.stale == (file,) and stale.read_bytes() == b"old"
    result = invoke(store, tmp_path / "out", "--layout", layout, "--stats", "mean")
    assert result.exit_code == 0 and f"1 file there is no part of this export, {file} first" in result.output


def test_a_destination_that_is_a_file_or_below_one(store, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/testing").write_bytes(b"mine")
    for destination, said in (("file", "file"), ("file/below", "file"), ("out", "testing")):
        result = invoke(store, tmp_path / destination, "--layout", "npy")
        assert result.exit_code == 2 and f"{said}: is no folder; choose another destination" in result.output
        assert len(result.output.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["testing"]


def test_no_destination(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = invoke(store, "", "--layout", "npy")
    assert result.exit_code == 2 and "the destination is empty: give a folder" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_ends_the_export_with_one_line(store, tmp_path, monkeypatch):
    def full(path, chunks):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("streamfeat.export.destination.write_whole", full)
    result = invoke(store, tmp_path / "out", "--layout", "npy")
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert ("out: testing/01_0014.npy cannot be written (No space left on device); the same command goes on"
            in result.output)


def test_a_destination_that_may_not_be_written_to(store, tmp_path, monkeypatch):
    """The superuser, as whom tests may run, may write everywhere but there: so access is denied by hand."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out")
    with pytest.raises(ExportError, match="out: cannot be written to; choose a folder that you may write to"):
        export(store, tmp_path / "out", layout="npy")


def test_a_video_that_would_be_file_and_folder(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 32, "a.npy/b": 32})
    with pytest.raises(ExportError, match=r"a.npy would be both a file and the folder of a.npy/b.npy"):
        export(store, tmp_path / "npy", layout="npy")
    assert not (tmp_path / "npy").exists()


KILLED = """
import os, signal, sys
from streamfeat import files
from streamfeat.export import export
replace, left = os.replace, int(sys.argv[4])
def die_later(*paths):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(*paths)
files.os.replace = die_later
export(sys.argv[1], sys.argv[2], layout=sys.argv[3], stats=["mean"])
"""


@pytest.mark.parametrize(("layout", "after"), [("fed-wsvad", 3), ("rtfm", 5), ("safetensors", 0)])
def test_a_killed_export_goes_on_and_leaves_nothing_behind(store, tmp_path, layout, after):
    export(store, tmp_path / "whole", layout=layout, stats=["mean"])
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store), str(out), layout, str(after)])
    assert killed.returncode == -9 and len([path for path in digests(out) if path.endswith(".part")]) == 1
    exported = export(store, out, layout=layout, stats=["mean"])
    assert exported.kept == after and not exported.stale
    assert digests(out).keys() == digests(tmp_path / "whole").keys()


@pytest.mark.parametrize("layout", ["npy", "fed-wsvad", "rtfm", "safetensors"])
def test_nothing_is_written_outside_through_a_link(store, tmp_path, layout):
    outside = tmp_path / "outside"
    outside.mkdir()
    destination = tmp_path / "dest"
    destination.mkdir()
    for name in ("training", "testing", "shanghaitech", "features"):
        (destination / name).symlink_to(outside, target_is_directory=True)
    (destination / "index.json").symlink_to(outside / "index.json")
    try:
        export(store, destination, layout=layout, stats=["mean"])
    except (UnsafeName, ExportRefused) as error:
        assert "leads out of" in str(error) or "index.json first" in str(error)
    assert not list(outside.iterdir())


def test_a_store_with_a_hostile_name(tmp_path):
    store = write_store(tmp_path / "out.h5", {"fine": 32, "a/C:x": 32})
    with pytest.raises(UnsafeName, match="names a drive"):
        export(store, tmp_path / "npy", layout="npy")
    assert not (tmp_path / "npy").exists()
