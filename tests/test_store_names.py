"""Names of videos in a store: any that a file can have, but for those that HDF5 or the schema cannot tell apart."""

import os

import numpy as np
import pytest

from streamfeat.store import FeatureStore, StoreError, StoreWriter, check_names
from tests.feature_stores import HEADER, add_video, features_of, make_store


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


WEIRD = [
    "a b", ".hidden", "100%", "ünï/çødé", "视频/监控 01", "e\u0301", "é", "x" * 4000, "..." , "-rf", "a\\b",
    "new\nline",
    "features", "labels/start_frame", "C:", "*?[0]", "tab\there", "a/b/c/d/e/f/g/h", "emoji 🎥", "a,b;c", "'quoted\"",
]


def test_any_name_a_file_can_have(path):
    assert check_names(WEIRD) == []
    with StoreWriter.open(path, HEADER) as writer:
        for seed, name in enumerate(WEIRD):
            add_video(writer, name, seed=seed)
            writer.fail(f"failed {name}", "decode", "no reason")
        assert writer.videos.keys() == set(WEIRD)
    with FeatureStore(path) as store:
        assert set(store) == set(WEIRD) and len(store) == len(WEIRD)
        assert set(store.failures) == {f"failed {name}" for name in WEIRD}
        for seed, name in enumerate(WEIRD):
            assert name in store
            np.testing.assert_array_equal(store[name].features, features_of(seed, 4))
    with StoreWriter.open(path, HEADER) as writer:
        assert writer.videos.keys() == set(WEIRD)


def test_names_are_in_natural_order(path):
    names = ["v2", "v10", "v1", "b/v10", "b/v9", "B/v1", "v01", "10", "9"]
    make_store(path, *names)
    with FeatureStore(path) as store:
        assert list(store) == ["9", "10", "B/v1", "b/v9", "b/v10", "v01", "v1", "v2", "v10"]


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "a/./b", "..", "../a", "nul\0", "not utf-8 \udcff"])
def test_names_that_cannot_be(path, name):
    (problem,) = check_names(["fine", name])
    assert "cannot be a video's name" in problem and "\n" not in problem
    with StoreWriter.open(path, HEADER) as writer:
        with pytest.raises(StoreError, match="cannot be a video's name"):
            writer.begin(name)
        with pytest.raises(StoreError, match="cannot be a video's name"):
            writer.fail(name, "decode", "x")
        add_video(writer, "fine")
    with FeatureStore(path) as store:
        assert name not in store
        with pytest.raises(KeyError):
            store[name]


@pytest.mark.parametrize("below", ["a/features", "a/labels/b", "a/start_frame/b/c"])
def test_names_that_exclude_each_other(path, below):
    (problem,) = check_names(["a", below])
    assert problem.startswith(f"{below}: lies below the video 'a'")
    for first, second in (("a", below), (below, "a")):
        with StoreWriter.open(path, HEADER, overwrite=os.path.exists(path)) as writer:
            add_video(writer, first)
            with pytest.raises(StoreError, match="lies below the video 'a'"):
                writer.begin(second)
        with FeatureStore(path) as store:
            assert list(store) == [first]


def test_a_video_may_lie_below_another(path):
    """``a.mp4`` next to a folder ``a`` of videos."""
    assert check_names(["a", "a/b"]) == []
    for names in (("a", "a/b"), ("a/b", "a")):
        with StoreWriter.open(path, HEADER, overwrite=os.path.exists(path)) as writer:
            for seed, name in enumerate(names):
                add_video(writer, name, seed=seed)
            writer.commit()
            add_video(writer, "a", seed=7)
        with FeatureStore(path) as store:
            assert list(store) == ["a", "a/b"]
            np.testing.assert_array_equal(store["a"].features, features_of(7, 4))
            np.testing.assert_array_equal(store["a/b"].features, features_of(names.index("a/b"), 4))
