"""Every layout, read back the way its detector reads it."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from streamfeat.align import align
from streamfeat.cli import main
from streamfeat.export import ExportError, ExportRefused, export
from streamfeat.files import UnsafeName, check_name, path_inside, write_whole
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore
from tests.feature_stores import write_store
from tests.published_detector import Detector, PublishedDataset, evaluate

#: frames; the first has a mask that ends early, one is only known as a whole
VIDEOS = {"training/01_001": 100, "testing/01_0014": 100, "testing/01_0015": 40, "testing/02_0128": 64, "short": 9}
TRAIN, TEST = ["01_001", "01_0014"], ["01_0015", "02_0128"]


def labelled_store(path, recipe=None, videos=VIDEOS, **options):
    store = write_store(path, videos, recipe, **options)
    labels = {
        "01_001": np.zeros(96),
        "01_0014": np.r_[np.zeros(40), np.ones(45)],
        "01_0015": np.r_[np.ones(20), np.zeros(20)],
    }
    frame, video = path.with_name("frame.pickle"), path.with_name("video.pickle")
    frame.write_bytes(pickle.dumps(labels))
    video.write_bytes(pickle.dumps({"02_0128": [0.0], "01_0014": [1.0]}))
    align(store, frame, video_labels=video)
    return store


@pytest.fixture
def store(tmp_path):
    return labelled_store(tmp_path / "out.h5")


@pytest.fixture
def lists(tmp_path):
    paths = tmp_path / "train.txt", tmp_path / "test.txt"
    for path, names in zip(paths, (TRAIN, TEST), strict=True):
        path.write_text("\n".join(names) + "\n")
    return {"train_list": paths[0], "test_list": paths[1]}


def features(store, name, clips):
    with FeatureStore(store) as reader:
        return reader[name].features[:clips]


def tree(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_fed_wsvad_is_read_by_the_published_rules(store, lists, tmp_path):
    exported = export(store, tmp_path / "VAD", layout="fed-wsvad", **lists)
    assert exported.empty == () and exported.clips == 6 + 5 + 2 + 4
    root = tmp_path / "VAD" / "shanghaitech"
    assert sorted(tree(root)) == sorted(
        [f"features_video/i3d/combine/{name}/feature.npy" for name in TRAIN + TEST]
        + ["GT/frame_label.pickle", "GT/video_label.pickle", "train_split.txt", "test_split.txt"])
    stored = np.load(root / "features_video/i3d/combine/01_0014/feature.npy")
    assert stored.dtype == np.float32 and np.array_equal(stored, features(store, "testing/01_0014", 5))
    train = PublishedDataset(tmp_path / "VAD", "shanghaitech", train=True)
    assert (train.anomalous, train.normal) == (["01_0014"], ["01_001"])
    test = PublishedDataset(tmp_path / "VAD", "shanghaitech", train=False)
    assert [name for _, name in (test[index] for index in range(len(test)))] == TEST


def test_a_small_detector_trains_and_is_evaluated_on_it(store, lists, tmp_path):
    export(store, tmp_path / "VAD", layout="fed-wsvad", **lists)
    torch.manual_seed(0)
    detector = Detector(8)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    train = torch.utils.data.DataLoader(PublishedDataset(tmp_path / "VAD", "shanghaitech", train=True), batch_size=1)
    losses = []
    for _ in range(20):
        for anomalous, normal in train:
            loss = torch.relu(1 - detector(anomalous).max() + detector(normal).max())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    test = PublishedDataset(tmp_path / "VAD", "shanghaitech", train=False)
    scores, labels = evaluate(detector, test, tmp_path / "VAD" / "shanghaitech" / "GT")
    assert len(scores) == len(labels) == 16 * (2 + 4) and labels.sum() == 20


def test_fed_wsvad_without_labels_or_lists(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 64, "b": 32})
    exported = export(store, tmp_path / "VAD", layout="fed-wsvad", dataset="UBnormal")
    folder = "UBnormal/features_video/i3d/combine"
    assert sorted(tree(tmp_path / "VAD")) == [f"{folder}/{name}/feature.npy" for name in "ab"]
    assert any("GT was not written" in note for note in exported.notes)


def test_fed_wsvad_without_lists_says_which_videos_have_no_label(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 64, "b": 32, "c": 32})
    (tmp_path / "gt.json").write_text(json.dumps({"a": [0, 1] * 32}))
    align(store, tmp_path / "gt.json")
    exported = export(store, tmp_path / "VAD", layout="fed-wsvad")
    assert [note for note in exported.notes if "without a label" in note] == [
        "GT/video_label.pickle: 2 videos without a label left out, b first (streamfeat align --video-labels)"]


LAYOUT_NAMES = ["npy", "fed-wsvad", "rtfm", "xd", "safetensors"]


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


def test_fed_wsvad_has_no_folders_within_a_data_set(tmp_path):
    store = write_store(tmp_path / "out.h5", {"train/a": 64, "test/a": 32})
    with pytest.raises(ExportError, match="test/a and train/a would both be a"):
        export(store, tmp_path / "VAD", layout="fed-wsvad")
    assert not (tmp_path / "VAD").exists()


@pytest.mark.parametrize("recipe", [Recipe(clip_stride=8), Recipe(frame_step=2), Recipe(tail="pad")], ids=str)
def test_ground_truth_has_sixteen_labels_a_clip_whatever_the_recipe(recipe, tmp_path):
    store = labelled_store(tmp_path / "out.h5", recipe)
    export(store, tmp_path / "VAD", layout="fed-wsvad")
    export(store, tmp_path / "rtfm", layout="rtfm", stats=["mean"])
    frames = pickle.loads((tmp_path / "VAD/shanghaitech/GT/frame_label.pickle").read_bytes())
    flat, lines = np.load(tmp_path / "rtfm/gt.npy"), (tmp_path / "rtfm/test.list").read_text().split()
    assert len(lines) == 4
    start = 0
    with FeatureStore(store) as reader:
        for line in lines:
            name = Path(line).name.removesuffix("_i3d.npy")
            video = next(reader[stored] for stored in reader if stored.endswith(f"/{name}"))
            clips = len(np.load(line))
            assert clips == (video.clips if video.aligned_clips is None else video.aligned_clips)
            labels = np.zeros(1000, int) if video.aligned_clips is None else video.labels.frame
            seen = [clip * recipe.clip_stride + k * recipe.frame_step for clip in range(clips) for k in range(16)]
            expected = [labels[min(frame, video.frames - 1, len(labels) - 1)] for frame in seen]
            assert flat[start : start + 16 * clips].tolist() == expected
            assert frames[name][: 16 * clips].tolist() == expected
            start += 16 * clips
    assert start == len(flat)


def test_labels_beyond_the_end_of_a_video_are_of_no_clip(tmp_path):
    """A padded clip repeats the last frame, whatever labels come after that."""
    store = write_store(tmp_path / "out.h5", {"a": 40}, Recipe(tail="pad"))
    (tmp_path / "gt.json").write_text(json.dumps({"a": [0] * 40 + [1] * 12}))
    align(store, tmp_path / "gt.json")
    export(store, tmp_path / "VAD", layout="fed-wsvad")
    export(store, tmp_path / "rtfm", layout="rtfm", stats=["mean"])
    frames = pickle.loads((tmp_path / "VAD/shanghaitech/GT/frame_label.pickle").read_bytes())
    assert np.load(tmp_path / "rtfm/gt.npy").tolist() == frames["a"][:48].tolist() == [0] * 48


def test_npy_is_read_by_actionformer(tmp_path):
    store = write_store(tmp_path / "out.h5", {"video_validation_0000051": 64, "sub/video_test_0000004": 40},
                        Recipe.named("thumos14"))
    export(store, tmp_path / "features", layout="npy")
    for name, clips in (("video_validation_0000051", 13), ("sub/video_test_0000004", 7)):
        loaded = np.load(os.path.join(tmp_path / "features", "" + name + ".npy")).astype(np.float32)
        assert loaded.shape == (clips, 8) and np.array_equal(loaded, features(store, name, clips))


def test_statistics_are_selected_and_joined(store, tmp_path):
    whole = features(store, "training/01_001", 6)
    for stats, flatten, expected in (
        (["mean"], False, whole[:, 0]), (["max", "mean"], False, whole[:, [2, 0]]),
        (None, True, whole.reshape(6, 24)), (["std"], True, whole[:, 1]),
        (["max", "std"], True, whole[:, [2, 1]].reshape(6, 16)),
    ):
        export(store, tmp_path / "npy", layout="npy", stats=stats, flatten=flatten, overwrite=True)
        assert np.array_equal(np.load(tmp_path / "npy/training/01_001.npy"), expected), (stats, flatten)
    with pytest.raises(ExportError, match="no statistic fc_norm; it has mean, std, max"):
        export(store, tmp_path / "other", layout="npy", stats=["fc_norm"])
    for stats in ([], ["mean", "max", "mean"]):
        with pytest.raises(ExportError, match="choose each statistic once, and at least one of mean, std, max"):
            export(store, tmp_path / "other", layout="npy", stats=stats)


def test_rtfm_is_read_by_the_published_rules(tmp_path, lists):
    store = labelled_store(tmp_path / "out.h5", Recipe.named("wsvad-10crop"))
    exported = export(store, tmp_path / "rtfm", layout="rtfm", stats=["mean"], **lists)
    lists_made = [(tmp_path / f"rtfm/{split}.list").read_text() for split in ("train", "test")]
    train, test = (text.splitlines(keepends=True) for text in lists_made)
    assert [Path(line.strip()).name for line in train] == ["01_0014_i3d.npy", "01_001_i3d.npy"], "anomalous first"
    assert any("1 anomalous video first, then 1 normal one" in note for note in exported.notes)
    loaded = np.array(np.load(train[0].strip("\n"), allow_pickle=True), dtype=np.float32)
    assert loaded.transpose(1, 0, 2).shape == (10, 5, 8)
    assert np.array_equal(loaded, features(store, "testing/01_0014", 5)[:, :, 0])
    predictions = np.repeat(np.concatenate([np.arange(len(np.load(line.strip("\n")))) for line in test]), 16)
    truth = np.load(tmp_path / "rtfm/gt.npy")
    assert len(predictions) == len(truth) and truth.tolist() == [1.0] * 20 + [0.0] * (12 + 64)


def test_one_crop_files_have_the_centre_first(tmp_path, lists):
    store = labelled_store(tmp_path / "out.h5", Recipe.named("xd-5crop"))
    export(store, tmp_path / "xd", layout="xd", flatten=True, **lists)
    lines = (tmp_path / "xd/test.list").read_text().split()
    assert [Path(line).name for line in lines[:6]] == [*(f"01_0015__{crop}.npy" for crop in range(5)), "02_0128__0.npy"]
    stored = features(store, "testing/01_0015", 2).reshape(2, 5, 24)
    for number, crop in enumerate([4, 0, 1, 2, 3]):
        assert np.array_equal(np.load(lines[number]), stored[:, crop])
    assert len(np.load(tmp_path / "xd/gt.npy")) == 16 * 6


def test_what_the_loaders_would_stumble_over_is_said(store, lists, tmp_path):
    """As their code has it: the shape that RTFM transposes, the crops and names that XDVioDet and UR-DMU count on."""
    notes = " ".join(export(store, tmp_path / "rtfm", layout="rtfm", stats=["mean"], **lists).notes)
    assert "one crop a clip, (T, C): RTFM's loader" in notes and "blanks" not in notes
    notes = " ".join(export(store, tmp_path / "x d", layout="xd", stats=["mean"], **lists).notes)
    assert "1 file a video: the detectors' evaluation takes 5" in notes
    assert "would take 2 normal videos here for anomalous, training/01_001 first" in notes
    assert "some paths in the lists have blanks" in notes
    crops = labelled_store(tmp_path / "crops.h5", Recipe.named("xd-5crop"))
    notes = " ".join(export(crops, tmp_path / "rtfm5", layout="rtfm", stats=["mean"]).notes
                     + export(crops, tmp_path / "xd5", layout="xd", stats=["mean"]).notes)
    assert "crop a clip" not in notes and "a video:" not in notes and "anomalous" not in notes


def test_ten_crops_are_ten_files_as_ur_dmu_lists_them(tmp_path):
    store = labelled_store(tmp_path / "out.h5", Recipe.named("wsvad-10crop"))
    export(store, tmp_path / "xd", layout="xd", stats=["mean"])
    assert len(list((tmp_path / "xd/features").rglob("01_0015__*.npy"))) == 10


@pytest.mark.parametrize("layout", ["rtfm", "xd"])
def test_one_feature_a_clip_must_be_chosen(store, tmp_path, layout):
    with pytest.raises(ExportError, match="choose with --stats mean"):
        export(store, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors_are_read_in_slices(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("streamfeat.export.shards.SHARD_BYTES", 600)
    store = labelled_store(tmp_path / "out.h5", dtype=dtype)
    export(store, tmp_path / "shards", layout="safetensors")
    index = json.loads((tmp_path / "shards/index.json").read_text())
    assert index["recipe"]["name"] == "wsvad" and len({video["file"] for video in index["videos"].values()}) > 1
    with FeatureStore(store) as reader:
        for name, video in index["videos"].items():
            with safe_open(tmp_path / "shards" / video["file"], "pt") as file:
                expected = reader[name].features[: video["clips"]]
                assert np.array_equal(file.get_tensor(f"features/{name}").numpy(), expected)
                assert np.array_equal(file.get_slice(f"features/{name}")[1:2].numpy(), expected[1:2])
                if reader[name].aligned_clips is not None:
                    assert np.array_equal(file.get_tensor(f"labels/{name}").numpy(), reader[name].labels.clip)
        assert index["videos"]["testing/01_0014"]["video_label"] == 1


@pytest.mark.parametrize("layout", ["npy", "fed-wsvad", "rtfm", "xd", "safetensors"])
def test_the_same_export_again_keeps_what_is_there_and_adds_what_is_not(store, lists, tmp_path, layout):
    options = {"layout": layout, "stats": ["mean"], **lists}
    exported = export(store, tmp_path / "out", **options)
    before, files = tree(tmp_path / "out"), exported.written
    assert len(before) == files and (exported.kept, exported.stale) == (0, ())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = export(store, tmp_path / "out", **options)
    assert (again.written, again.kept) == (0, files) and tree(tmp_path / "out") == before
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    gone = sorted(times)[0]
    gone.unlink()
    again = export(store, tmp_path / "out", **options)
    assert (again.written, again.kept) == (1, files - 1) and tree(tmp_path / "out") == before
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
    old = tree(tmp_path / "out")
    options = {"layout": layout, "stats": ["mean"], **lists, **changed}
    (tmp_path / "out" / first).with_name("another.npy").write_bytes(b"")
    kept = tree(tmp_path / "out")
    with pytest.raises(ExportRefused, match=rf"there (is|are) not what this export would write, {first} first: .*--ov"):
        export(store, tmp_path / "out", **options)
    assert tree(tmp_path / "out") == kept, "nothing changed"
    export(store, tmp_path / "out", overwrite=True, **options)
    export(store, tmp_path / "fresh", **options)
    new = tree(tmp_path / "out")
    assert {name: new[name] for name in old if not name.endswith(".list")} == {
        name: digest for name, digest in tree(tmp_path / "fresh").items() if not name.endswith(".list")}


@pytest.mark.parametrize(("layout", "first"), [
    ("rtfm", "features/testing/01_0014_i3d.npy"), ("xd", "features/testing/01_0014__0.npy"),
    ("fed-wsvad", "shanghaitech/features_video/i3d/combine/01_0014/feature.npy"),
])
def test_other_labels_are_another_export(store, lists, tmp_path, layout, first):
    export(store, tmp_path / "out", layout=layout, stats=["mean"], **lists)
    before = tree(tmp_path / "out")
    labels = {"01_001": [0] * 96, "01_0014": [1] * 70, "01_0015": [0] * 40, "02_0128": [0] * 64}
    (tmp_path / "gt.json").write_text(json.dumps(labels))
    align(store, tmp_path / "gt.json")
    with pytest.raises(ExportRefused, match=f"[234] files there are not what this export would write, {first} first"):
        export(store, tmp_path / "out", layout=layout, stats=["mean"], **lists)
    assert tree(tmp_path / "out") == before


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
    result = run(store, tmp_path / "out", "--layout", layout, "--stats", "mean")
    assert result.exit_code == 0 and f"1 file there is no part of this export, {file} first" in result.output


@pytest.mark.parametrize("layout", OTHERWISE)
@pytest.mark.parametrize("damage", ["features", "start_frame", "labels/frame"])
def test_a_damaged_video_is_never_exported(store, lists, tmp_path, layout, damage):
    with h5py.File(store, "r+") as file:
        values = file["videos/testing/01_0014"][damage]
        values[5:] = values[5:] + 1  # of a clip that is not even aligned
    for overwrite in ([], ["--overwrite"]):
        result = run(store, tmp_path / "out", "--layout", layout, "--stats", "mean", *overwrite)
        assert result.exit_code == 1, result.output
        assert "1 video is damaged (checksum), testing/01_0014 first: streamfeat verify" in result.output
    assert not (tmp_path / "out").exists()


def test_a_store_that_misquotes_itself_is_never_exported(store, tmp_path):
    with h5py.File(store, "r+") as file:
        file["videos/testing/01_0014"].attrs["frames"] = 99
    result = run(store, tmp_path / "out", "--layout", "npy")
    assert result.exit_code == 1 and "1 video is damaged (checksum), testing/01_0014 first" in result.output
    with h5py.File(store, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace('"clip_stride": 16', '"clip_stride": 8')
    result = run(store, tmp_path / "out", "--layout", "npy")
    assert result.exit_code == 1 and "its recipe or model is damaged (checksum)" in result.output
    assert not (tmp_path / "out").exists()


def test_a_store_that_lacks_what_it_should_hold_is_one_line(store, tmp_path):
    with h5py.File(store, "r+") as file:
        del file["videos/testing/01_0014/start_frame"]
    for layout in OTHERWISE:
        result = run(store, tmp_path / "out", "--layout", layout, "--flatten")
        assert result.exit_code == 1 and "1 video is damaged (checksum), testing/01_0014 first" in result.output
        assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_a_file_or_below_one(store, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/testing").write_bytes(b"mine")
    for destination, said in (("file", "file"), ("file/below", "file"), ("out", "testing")):
        result = run(store, tmp_path / destination, "--layout", "npy")
        assert result.exit_code == 2 and f"{said}: is no folder; choose another destination" in result.output
        assert len(result.output.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["testing"]


def test_no_destination(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = run(store, "", "--layout", "npy")
    assert result.exit_code == 2 and "the destination is empty: give a folder" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_ends_the_export_with_one_line(store, tmp_path, monkeypatch):
    def full(path, chunks):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("streamfeat.export.destination.write_whole", full)
    result = run(store, tmp_path / "out", "--layout", "npy")
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
    assert killed.returncode == -9 and len([path for path in tree(out) if path.endswith(".part")]) == 1
    exported = export(store, out, layout=layout, stats=["mean"])
    assert exported.kept == after and not exported.stale
    assert tree(out).keys() == tree(tmp_path / "whole").keys()


def test_what_another_process_writes_is_not_abandoned(tmp_path):
    def chunks():
        yield b"half"
        subprocess.run([sys.executable, "-c", "import sys; from streamfeat.files import remove_abandoned\n"
                        "remove_abandoned(sys.argv[1])", str(tmp_path)], check=True)
        yield b" and half"

    (tmp_path / ".0123456789abcdef.part").write_bytes(b"abandoned")
    (tmp_path / ".mine.part").write_bytes(b"of somebody else")
    write_whole(tmp_path / "file", chunks())
    assert (tmp_path / "file").read_bytes() == b"half and half"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "file"]


@pytest.mark.parametrize("name", [
    "", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "C:/x", "c:x", "a\\..\\b", "a\x00b", "a\nb", "NUL",
    "com1.npy", "a/aux.txt", "a.", "a ", "x" * 256,
])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(UnsafeName):
        check_name(name)
    with pytest.raises(UnsafeName):
        path_inside(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [
    "01_0014", "a/b.c/d", "Bad.Boys.1995__#01-11-55_label_B2-0-0", "v=x", "ä", "12:30", "console",
])
def test_names_of_real_videos_are_not(name):
    assert "/".join(check_name(name)) == name


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


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def chunks():
        yield b"half"
        raise OSError("disk full")

    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with pytest.raises(OSError, match="disk full"):
            write_whole(tmp_path / name, chunks())
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_bytes() == b"old"


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """A video of 160 MB, in a process that may take 100 MB more than it has when it starts."""
    long = write_store(tmp_path / "long.h5", {"a": 16 * 5000}, channels=2667)
    script = (
        "import resource, sys\n"
        "from streamfeat.export import export\n"
        "from pathlib import Path\n"
        "now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), resource.RLIM_INFINITY))\n"
        "for layout in ('npy', 'safetensors'):\n"
        "    export(sys.argv[1], sys.argv[2], layout=layout)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(long), str(tmp_path / "out")], check=True)
    assert (tmp_path / "out/a.npy").stat().st_size > 160_000_000


def test_the_command(store, lists, tmp_path):
    arguments = ["export", str(store), str(tmp_path / "VAD"), "--layout", "fed-wsvad", "--train-list",
                 str(lists["train_list"]), "--test-list", str(lists["test_list"])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "4 videos, 17 clips of (3, 8): 8 files written\n" in result.output
    assert "1 video of the store is in no list and not exported, short first" in result.output
    result = CliRunner().invoke(main, arguments)
    assert "0 files written, 8 were there already\n" in result.output
    result = CliRunner().invoke(main, [*arguments, "--flatten"])
    assert result.exit_code == 1 and "4 files there are not what this export would write" in result.output
    result = CliRunner().invoke(main, [*arguments, "--stats", "median"])
    assert result.exit_code == 2 and "no statistic median" in result.output
    result = CliRunner().invoke(main, [*arguments, "--json", "--overwrite"])
    assert json.loads(result.output)["written"] == 8
    assert "left out: short: no clip to train on" in run(store, tmp_path / "npy", "--layout", "npy").output
