"""Every layout, read back the way its detector reads it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from streamfeat.align import align
from streamfeat.export import ExportError, export
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore
from tests.exports import TEST, TRAIN, digests, invoke, labelled_store, stored_features, write_lists
from tests.feature_stores import write_store
from tests.published_detector import Detector, PublishedDataset, evaluate


@pytest.fixture
def store(tmp_path):
    return labelled_store(tmp_path / "out.h5")


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path)


def test_fed_wsvad_is_read_by_the_published_rules(store, lists, tmp_path):
    exported = export(store, tmp_path / "VAD", layout="fed-wsvad", **lists)
    assert exported.empty == () and exported.clips == 6 + 5 + 2 + 4
    root = tmp_path / "VAD" / "shanghaitech"
    assert sorted(digests(root)) == sorted(
        [f"features_video/i3d/combine/{name}/feature.npy" for name in TRAIN + TEST]
        + ["GT/frame_label.pickle", "GT/video_label.pickle", "train_split.txt", "test_split.txt"])
    stored = np.load(root / "features_video/i3d/combine/01_0014/feature.npy")
    assert stored.dtype == np.float32 and np.array_equal(stored, stored_features(store, "testing/01_0014", 5))
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
    assert sorted(digests(tmp_path / "VAD")) == [f"{folder}/{name}/feature.npy" for name in "ab"]
    assert any("GT was not written" in note for note in exported.notes)


def test_fed_wsvad_without_lists_says_which_videos_have_no_label(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 64, "b": 32, "c": 32})
    (tmp_path / "gt.json").write_text(json.dumps({"a": [0, 1] * 32}))
    align(store, tmp_path / "gt.json")
    exported = export(store, tmp_path / "VAD", layout="fed-wsvad")
    assert [note for note in exported.notes if "without a label" in note] == [
        "GT/video_label.pickle: 2 videos without a label left out, b first (streamfeat align --video-labels)"]


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
        assert loaded.shape == (clips, 8) and np.array_equal(loaded, stored_features(store, name, clips))


def test_statistics_are_selected_and_joined(store, tmp_path):
    whole = stored_features(store, "training/01_001", 6)
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
    assert np.array_equal(loaded, stored_features(store, "testing/01_0014", 5)[:, :, 0])
    predictions = np.repeat(np.concatenate([np.arange(len(np.load(line.strip("\n")))) for line in test]), 16)
    truth = np.load(tmp_path / "rtfm/gt.npy")
    assert len(predictions) == len(truth) and truth.tolist() == [1.0] * 20 + [0.0] * (12 + 64)


def test_one_crop_files_have_the_centre_first(tmp_path, lists):
    store = labelled_store(tmp_path / "out.h5", Recipe.named("xd-5crop"))
    export(store, tmp_path / "xd", layout="xd", flatten=True, **lists)
    lines = (tmp_path / "xd/test.list").read_text().split()
    assert [Path(line).name for line in lines[:6]] == [*(f"01_0015__{crop}.npy" for crop in range(5)), "02_0128__0.npy"]
    stored = stored_features(store, "testing/01_0015", 2).reshape(2, 5, 24)
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
    arguments = [store, tmp_path / "VAD", "--layout", "fed-wsvad", "--train-list", lists["train_list"],
                 "--test-list", lists["test_list"]]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "4 videos, 17 clips of (3, 8): 8 files written\n" in result.output
    assert "1 video of the store is in no list and not exported, short first" in result.output
    result = invoke(*arguments)
    assert "0 files written, 8 were there already\n" in result.output
    result = invoke(*arguments, "--flatten")
    assert result.exit_code == 1 and "4 files there are not what this export would write" in result.output
    result = invoke(*arguments, "--stats", "median")
    assert result.exit_code == 2 and "no statistic median" in result.output
    result = invoke(*arguments, "--json", "--overwrite")
    assert json.loads(result.output)["written"] == 8
    assert "left out: short: no clip to train on" in invoke(store, tmp_path / "npy", "--layout", "npy").output
