"""Which videos an export takes: what lists, labels and damage decide."""

import json
import re
from pathlib import Path

import h5py
import pytest

from streamfeat.align import align
from streamfeat.export import ExportError, export
from streamfeat.files import UnsafeName
from tests.exports import LAYOUT_NAMES, TEST, TRAIN, VIDEOS, invoke, labelled_store, write_lists
from tests.feature_stores import write_store


@pytest.fixture
def store(tmp_path):
    return labelled_store(tmp_path / "out.h5")


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path)


def exported_videos(folder):
    """Of any layout: the videos that have features there."""
    if (folder / "index.json").exists():
        return sorted(name.rpartition("/")[2] for name in json.loads((folder / "index.json").read_text())["videos"])
    files = [path for path in folder.rglob("*.npy") if path.name != "gt.npy"]
    return sorted(path.parent.name if path.stem == "feature" else re.sub("_i3d$|__0$", "", path.stem)
                  for path in files)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_lists_choose_what_is_exported(tmp_path, layout):
    store = labelled_store(tmp_path / "out.h5", videos={**VIDEOS, "other/03_001": 32, "other/03_002": 32})
    (tmp_path / "train.txt").write_text("01_001\n01_0014\nshort\n")
    (tmp_path / "test.txt").write_text("01_0015\n")
    exported = export(store, tmp_path / "out", layout=layout, stats=["mean"], train_list=tmp_path / "train.txt",
                      test_list=tmp_path / "test.txt")
    assert exported_videos(tmp_path / "out") == ["01_001", "01_0014", "01_0015"]
    assert (exported.videos, exported.clips, exported.empty) == (3, 6 + 5 + 2, ("short",))
    assert "3 videos of the store are in no list and not exported, other/03_001 first" in exported.notes


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_one_list_alone(store, lists, tmp_path, layout):
    """What these layouts then test on is the rest that has frame labels, as test.list says."""
    options = {"layout": layout, "stats": ["mean"]}
    exported = export(store, tmp_path / "test", **options, test_list=lists["test_list"])
    assert exported_videos(tmp_path / "test") == TEST and not exported.empty
    assert "3 videos of the store are in no list and not exported, short first" in exported.notes
    export(store, tmp_path / "train", **options, train_list=lists["train_list"])
    assert exported_videos(tmp_path / "train") == (TRAIN + TEST if layout in ("rtfm", "xd") else TRAIN)


def test_without_lists_everything_is_exported(store, tmp_path):
    exported = export(store, tmp_path / "out", layout="npy")
    assert exported.videos == 4 and not any("in no list" in note for note in exported.notes)


def test_names_that_are_not_exported_stop_nothing(tmp_path):
    store = labelled_store(tmp_path / "out.h5", videos={**VIDEOS, "x/03_001": 32, "y/03_001": 32, "z/b\nc": 32})
    (tmp_path / "train.txt").write_text("training/01_001\n")
    (tmp_path / "two.txt").write_text("x/03_001\ny/03_001\n")
    for layout in ("npy", "fed-wsvad", "safetensors"):
        assert export(store, tmp_path / layout, layout=layout, train_list=tmp_path / "train.txt").videos == 1
        with pytest.raises(UnsafeName, match=r"holds a control character"):
            export(store, tmp_path / "all", layout=layout)
    with pytest.raises(ExportError, match=r"x/03_001 and y/03_001 would both be 03_001"):
        export(store, tmp_path / "all", layout="fed-wsvad", train_list=tmp_path / "two.txt")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_damaged_video_that_is_not_exported_stops_nothing(store, tmp_path, layout):
    with h5py.File(store, "r+") as file:
        file["videos/testing/01_0014/features"][0] += 1
    (tmp_path / "test.txt").write_text("01_0015\n")
    exported = export(store, tmp_path / "out", layout=layout, stats=["mean"], test_list=tmp_path / "test.txt")
    assert exported.videos == 1


def test_test_videos_need_frame_labels(store, tmp_path):
    listed = tmp_path / "list.txt"
    align(store, tmp_path / "frame.pickle")
    listed.write_text("01_0015\n02_0128\n")
    for layout in ("rtfm", "xd", "fed-wsvad"):
        with pytest.raises(ExportError, match="1 of the test videos has no frame labels, 'testing/02_0128' first"):
            export(store, tmp_path / "out", layout=layout, flatten=True, test_list=listed)
    assert not (tmp_path / "out").exists()


def test_training_videos_without_a_label_are_left_out(tmp_path):
    """Their loaders would take them for normal, or fail on them."""
    store = write_store(tmp_path / "out.h5", {"a": 32, "b": 32, "c": 32})
    (tmp_path / "gt.json").write_text(json.dumps({"a": [0, 1] * 16, "b": [0] * 32}))
    (tmp_path / "train.txt").write_text("c\nb\na\n")
    align(store, tmp_path / "gt.json")
    for layout, file, expected in (("rtfm", "train.list", ["a_i3d.npy", "b_i3d.npy"]),
                                   ("fed-wsvad", "shanghaitech/train_split.txt", ["b", "a"])):
        exported = export(store, tmp_path / layout, layout=layout, stats=["mean"], train_list=tmp_path / "train.txt")
        assert [Path(line).name for line in (tmp_path / layout / file).read_text().split()] == expected
        assert any("1 video without a label left out, c first" in note for note in exported.notes)
        (tmp_path / "none.txt").write_text("c\n")
        with pytest.raises(ExportError, match="none of the training videos has a label"):
            export(store, tmp_path / "other", layout=layout, stats=["mean"], train_list=tmp_path / "none.txt")


@pytest.mark.parametrize("layout", ["npy", "fed-wsvad", "rtfm", "safetensors"])
@pytest.mark.parametrize(("train", "test", "said"), [
    ("01_001", "01_0015\n99_9999", "test.txt: 1 name is not in the store, '99_9999' first"),
    ("01_001\n99_1\n99_2", "01_0015", "train.txt: 2 names are not in the store, '99_1' first"),
    ("01_0015\n01_001", "testing/01_0015.mp4", r"1 video is in .*train.txt and in .*test.txt, testing/01_0015 first"),
    ("01_001", "short", "test.txt: none of its videos has a clip to export"),
])
def test_lists_that_name_what_is_not_there_or_one_video_twice(store, tmp_path, layout, train, test, said):
    paths = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    for path, names in zip(paths.values(), (train, test), strict=True):
        path.write_text(names)
    with pytest.raises(ExportError, match=said):
        export(store, tmp_path / "out", layout=layout, stats=["mean"], **paths)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("damage", ["features", "start_frame", "labels/frame"])
def test_a_damaged_video_is_never_exported(store, lists, tmp_path, layout, damage):
    with h5py.File(store, "r+") as file:
        values = file["videos/testing/01_0014"][damage]
        values[5:] = values[5:] + 1  # of a clip that is not even aligned
    for overwrite in ([], ["--overwrite"]):
        result = invoke(store, tmp_path / "out", "--layout", layout, "--stats", "mean", *overwrite)
        assert result.exit_code == 1, result.output
        assert "1 video is damaged (checksum), testing/01_0014 first: streamfeat verify" in result.output
    assert not (tmp_path / "out").exists()


def test_a_store_that_misquotes_itself_is_never_exported(store, tmp_path):
    with h5py.File(store, "r+") as file:
        file["videos/testing/01_0014"].attrs["frames"] = 99
    result = invoke(store, tmp_path / "out", "--layout", "npy")
    assert result.exit_code == 1 and "1 video is damaged (checksum), testing/01_0014 first" in result.output
    with h5py.File(store, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace('"clip_stride": 16', '"clip_stride": 8')
    result = invoke(store, tmp_path / "out", "--layout", "npy")
    assert result.exit_code == 1 and "its recipe or model is damaged (checksum)" in result.output
    assert not (tmp_path / "out").exists()


def test_a_store_that_lacks_what_it_should_hold_is_one_line(store, tmp_path):
    with h5py.File(store, "r+") as file:
        del file["videos/testing/01_0014/start_frame"]
    for layout in LAYOUT_NAMES:
        result = invoke(store, tmp_path / "out", "--layout", layout, "--flatten")
        assert result.exit_code == 1 and "1 video is damaged (checksum), testing/01_0014 first" in result.output
        assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()
