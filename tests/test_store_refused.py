"""What a store does not take: features and files that it is not for, and places where it cannot be."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamfeat.store import BadFeatures, FeatureStore, Header, NotAStore, StoreError, StoreTooNew, StoreWriter
from streamfeat.store.journal import disk
from tests.disks import WatchedOS
from tests.feature_stores import HEADER, MODEL, RECIPE, add_video, features_of, make_store


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_feature_that_is_not_finite(path, value):
    with StoreWriter.open(path, HEADER) as writer:
        video = writer.begin("a")
        video.append(features_of(1, 2), [0, 16])
        bad = features_of(2, 2)
        bad[1, 2, 7] = value
        with pytest.raises(BadFeatures, match="a: has features that are not finite"):
            video.append(bad, [32, 48])
        video.append(features_of(3, 1), [32])
        video.finish({})
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store["a"].features, np.concatenate([features_of(1, 2), features_of(3, 1)]))
        assert store["a"].is_intact()


def test_no_feature_that_float16_cannot_hold(path):
    header = Header(RECIPE, MODEL, (3, 8), HEADER.dims, "float16")
    with StoreWriter.open(path, header) as writer, pytest.raises(BadFeatures, match="float16; use --dtype float32"):
        writer.begin("a").append(np.full((1, 3, 8), 7e4, np.float32), [0])


@pytest.mark.parametrize(("features", "start_frame"), [((2, 3, 9), 2), ((2, 3), 2), ((2, 3, 8), 3), ((3, 8), 3)])
def test_no_rows_of_another_shape(path, features, start_frame):
    with StoreWriter.open(path, HEADER) as writer:
        video = writer.begin("a")
        with pytest.raises(BadFeatures, match="do not fit"):
            video.append(np.zeros(features), np.zeros(start_frame, int))
        video.abandon()
        with pytest.raises(StoreError, match="begin it again"):
            video.finish({})


def test_attributes_that_cannot_be_stored_change_nothing(path):
    make_store(path, "a")
    with StoreWriter.open(path, HEADER) as writer, pytest.raises(TypeError):
        add_video(writer, "a", clips=9, weird=object())
    with FeatureStore(path) as store:
        assert store["a"].clips == 4 and store["a"].is_intact()


def not_stores(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("hello, this is a text file\n" * 100)
    empty = tmp_path / "empty.h5"
    empty.write_bytes(b"")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as h5:
        h5["x"] = 1
    folder = tmp_path / "folder.h5"
    folder.mkdir()
    return text, empty, other, folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_store_is_left_alone(tmp_path, overwrite):
    for file in not_stores(tmp_path):
        before = file.read_bytes() if file.is_file() else None
        listing = sorted(os.listdir(tmp_path))
        for attempt in (
            lambda file=file: StoreWriter.open(file, HEADER, overwrite=overwrite),
            lambda file=file: StoreWriter.open_existing(file),
            lambda file=file: FeatureStore(file),
        ):
            with pytest.raises(NotAStore, match=file.name) as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert (file.read_bytes() if file.is_file() else None) == before
        assert sorted(os.listdir(tmp_path)) == listing


def test_a_newer_format_is_left_alone(path):
    make_store(path, "a")
    with h5py.File(path, "r+") as h5:
        h5.attrs["format_version"] = 2
    before = Path(path).read_bytes()
    for attempt in (lambda: StoreWriter.open(path, HEADER), lambda: FeatureStore(path)):
        with pytest.raises(StoreTooNew, match=r"out\.h5: has format version 2.*update streamfeat"):
            attempt()
    assert Path(path).read_bytes() == before
    make_over = StoreWriter.open(path, HEADER, overwrite=True)
    add_video(make_over, "b")
    make_over.close()
    with FeatureStore(path) as store:
        assert list(store) == ["b"]


def test_a_cut_store_says_so(path):
    make_store(path, "a", "b")
    os.truncate(path, os.path.getsize(path) // 2)
    for attempt in (lambda: StoreWriter.open(path, HEADER), lambda: FeatureStore(path)):
        with pytest.raises(StoreError, match=r"out\.h5: is damaged .*restore it") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        FeatureStore(tmp_path / "missing.h5")
    with pytest.raises(StoreError, match="no such file"):
        StoreWriter.open_existing(tmp_path / "missing.h5")
    with pytest.raises(StoreError, match="there is no folder"):
        StoreWriter.open(tmp_path / "missing" / "out.h5", HEADER)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """As told by the operating system, to everybody but root; so it is told by a stand-in here."""
    path = str(tmp_path / "out.h5")

    def refuse(call, arguments):
        if call == "open":
            raise PermissionError(13, "Permission denied", arguments[0])

    monkeypatch.setattr(disk, "os", WatchedOS(refuse))
    with pytest.raises(StoreError, match=r"out\.h5: cannot be written \(Permission denied\)"):
        StoreWriter.open(path, HEADER)
    assert os.listdir(tmp_path) == []
