"""FeatureDataset: aligned features, in as many processes as one likes."""

import json
import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import streamfeat
from streamfeat.align import align
from streamfeat.dataset import FeatureDataset
from streamfeat.labels import LabelError
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, StoredVideo, StoreError
from tests.feature_stores import write_store

FRAMES = {f"{scene:02d}_{number:04d}": 16 * (number + 2) + 5 for scene in (1, 2) for number in range(8)}


@pytest.fixture
def store(tmp_path):
    store = write_store(tmp_path / "out.h5", {**FRAMES, "short": 3, "unlabelled": 50})
    labels = {name: [0] * (frames - 20) + [int(name < "02")] * 4 for name, frames in FRAMES.items()}
    (tmp_path / "gt.json").write_text(json.dumps(labels))
    align(store, tmp_path / "gt.json")
    return store


def test_a_training_loop_is_five_lines(store):
    torch.manual_seed(0)
    detector = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 1), torch.nn.Sigmoid())
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        for video in DataLoader(FeatureDataset(store), batch_size=None, shuffle=True):
            loss = torch.nn.functional.binary_cross_entropy(detector(video.features).max(), video.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-16:]) < 0.8 * np.mean(losses[:16])


def test_a_sample_is_what_the_store_holds(store):
    dataset = streamfeat.FeatureDataset(store, labelled=False)
    assert dataset.names == [*sorted(FRAMES), "unlabelled"] and len(dataset) == 17
    assert dataset.labels == [1] * 8 + [0] * 8 + [None]
    with FeatureStore(store) as reader:
        for sample in (dataset[index] for index in range(len(dataset))):
            video = reader[sample.name]
            clips = video.clips if video.aligned_clips is None else video.aligned_clips
            assert clips == video.clips - (sample.name != "unlabelled")
            assert sample.features.dtype == torch.float32 and torch.equal(
                sample.features, torch.from_numpy(video.features[:clips]))
            if sample.name == "unlabelled":
                assert sample.label.isnan() and sample.clip_labels.isnan().all()
            else:
                assert sample.label == (sample.name < "02")
                assert sample.clip_labels.tolist() == video.labels.clip.tolist()


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "after reading"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_every_kind(store, start, read_before):
    dataset = FeatureDataset(store)
    if read_before:
        assert len(dataset[3].features) == 4
    loader = DataLoader(dataset, batch_size=None, shuffle=True, num_workers=2, multiprocessing_context=start)
    seen = {video.name: video.features for video in loader}
    assert sorted(seen) == sorted(dataset.names)
    with FeatureStore(store) as reader:
        for name, features in seen.items():
            assert np.array_equal(features.numpy(), reader[name].features[: len(features)])
    assert torch.equal(dataset[0].features, seen[dataset.names[0]])


def test_batches_are_padded(store):
    loader = DataLoader(FeatureDataset(store), batch_size=4, collate_fn=FeatureDataset.collate)
    batch = next(iter(loader))
    assert batch.lengths.tolist() == [1, 2, 3, 4] and batch.features.shape == (4, 4, 3, 8)
    assert (batch.features[0, 1:] == 0).all() and batch.clip_labels[0, 1:].isnan().all()
    assert not batch.clip_labels[3].isnan().any() and batch.label.tolist() == [1, 1, 1, 1]


def test_statistics_names_and_half_precision(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a/x": 64, "a/y": 32}, Recipe(), dtype="float16")
    listed = tmp_path / "list.txt"
    listed.write_text("y.mp4\n")
    dataset = FeatureDataset(store, listed, stats=["max"], labelled=False)
    assert dataset.names == ["a/y"]
    assert dataset[0].features.shape == (2, 8) and dataset[0].features.dtype == torch.float32
    assert FeatureDataset(store, flatten=True, labelled=False)[0].features.shape == (4, 24)
    with pytest.raises(LabelError, match=r"1 video is not in .*, 'z' first"):
        FeatureDataset(store, ["y", "z"])


def test_videos_without_a_label_are_left_out_and_counted_once(store, caplog):
    dataset = FeatureDataset(store)
    assert dataset.names == sorted(FRAMES) and None not in dataset.labels
    assert not any(video.label.isnan() for video in DataLoader(dataset, batch_size=None, num_workers=1))
    assert [record.getMessage() for record in caplog.records] == [
        f"{store}: 1 video without a label left out, 'unlabelled' first (streamfeat align)"]
    assert caplog.records[0].levelname == "WARNING" and caplog.records[0].name.startswith("streamfeat")


def test_a_video_asked_for_that_has_no_label_is_an_error(store, tmp_path, caplog):
    said = r"^.*: 1 of the videos asked for has no label, 'unlabelled' first: .*streamfeat align"
    with pytest.raises(LabelError, match=said):
        FeatureDataset(store, ["01_0000", "unlabelled.mp4"])
    (tmp_path / "train.txt").write_text("unlabelled\n01_0000\n")
    with pytest.raises(LabelError, match=said):
        FeatureDataset(store, tmp_path / "train.txt")
    assert FeatureDataset(store, ["01_0000", "unlabelled"], labelled=False).names == ["01_0000", "unlabelled"]
    # no clip, so not in it either way
    assert FeatureDataset(store, ["01_0000", "short"]).names == ["01_0000"]
    assert not caplog.records


def test_a_store_without_any_label_is_an_error(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 64, "b": 32})
    with pytest.raises(LabelError, match=r"^.*out.h5: no video has a label: .*streamfeat align"):
        FeatureDataset(store)
    assert len(FeatureDataset(store, labelled=False)) == 2


def test_it_can_be_sent_to_another_process_after_reading(store):
    dataset = FeatureDataset(store)
    features = dataset[0].features
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].features, features)


def damage_features(video):
    video["features"][-1, 0, 0] += 1


def damage_start_frame(video):
    video["start_frame"][0] = 7


def damage_labels(video):
    video["labels/clip"][0] ^= 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [damage_features, damage_start_frame, damage_labels])
def test_a_damaged_video_is_never_handed_out(store, damage, workers):
    with h5py.File(store, "r+") as file:
        damage(file["videos/01_0003"])
    dataset = FeatureDataset(store)
    said = r"01_0003 is damaged \(checksum\): streamfeat verify"
    with pytest.raises(StoreError, match=said):
        list(DataLoader(dataset, batch_size=None, num_workers=workers))
    for _ in range(2):
        with pytest.raises(StoreError, match=said) as caught:
            dataset[3]
        assert "\n" not in str(caught.value)
    assert len(dataset[4].features) == 5


def test_a_damaged_recipe_is_told_at_once(store):
    with h5py.File(store, "r+") as file:
        file.attrs["software"] = "another"
    with pytest.raises(StoreError, match=r"recipe or model is damaged \(checksum\): streamfeat verify"):
        FeatureDataset(store)


def test_a_video_is_checked_once(store, monkeypatch):
    checked = []
    intact = StoredVideo.is_intact
    monkeypatch.setattr(StoredVideo, "is_intact", lambda video: checked.append(video.name) or intact(video))
    dataset = FeatureDataset(store, ["01_0000", "01_0001"])
    for _ in range(2):
        list(DataLoader(dataset, batch_size=None))
    assert checked == dataset.names
