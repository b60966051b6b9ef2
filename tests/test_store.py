"""The store: what is put in comes out, and nothing else happens to the file."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from streamfeat.store import (
    BadFeatures,
    Failure,
    FeatureStore,
    Header,
    NotAStore,
    StoreError,
    StoreLocked,
    StoreMismatch,
    StoreTooNew,
    StoreWriter,
    appending,
    check_names,
)
from streamfeat.store.journal import committed_length, disk
from tests.disks import WatchedOS

RECIPE = {"name": "wsvad", "clip_frames": 16, "stats": ("mean", "std", "max"), "mean": [0.5, 0.5, 0.5]}
MODEL = {"size": "vit_tiny", "source": "random", "sha256": "ab" * 32}
HEADER = Header(RECIPE, MODEL, (3, 8), ("statistic", "channel"))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


def rows(seed, clips, shape=(3, 8)):
    return np.random.default_rng(seed).standard_normal((clips, *shape), dtype=np.float32)


def add(writer, name, clips=4, seed=0, **attrs):
    video = writer.begin(name)
    video.append(rows(seed, clips, writer.header.row_shape), np.arange(clips) * 16)
    video.finish({"frames": clips * 16 + 3, "fps": 25.0, "source_bytes": 1000 + seed, **attrs})


def content(path):
    with open(path, "rb") as file:
        return file.read()


def make(path, *names, header=HEADER):
    with StoreWriter.open(path, header) as writer:
        for seed, name in enumerate(names):
            add(writer, name, seed=seed)


# --- in and out ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read(path):
    with StoreWriter.open(path, HEADER) as writer:
        video = writer.begin("01_0014")
        video.append(rows(1, 3), [0, 16, 32])
        video.append(rows(2, 2), [48, 64])
        video.finish({
            "source": "/videos/01_0014.avi", "source_bytes": 123, "source_mtime_ns": 1_700_000_000_123_456_789,
            "frames": 90, "fps": 24.5, "codec": "mpeg4", "damaged": True, "damaged_packets": 2, "rotation": None,
        })
    with FeatureStore(path) as store:
        assert (store.recipe, store.model) == (json.loads(json.dumps(RECIPE)), MODEL)
        assert store.dtype == np.float32
        assert store.created[:2] == "20" and store.software.startswith("streamfeat ")
        video = store["01_0014"]
        assert video.features.dtype == np.float32
        np.testing.assert_array_equal(video.features, np.concatenate([rows(1, 3), rows(2, 2)]))
        assert video.start_frame.dtype == np.int64 and video.start_frame.tolist() == [0, 16, 32, 48, 64]
        assert (video.name, video.clips, video.frames, video.fps) == ("01_0014", 5, 90, 24.5)
        assert video.labels is None and video.aligned_clips is None
        attrs = video.attrs
        assert attrs.pop("checksum").startswith("sha256:") and attrs.pop("attrs_checksum").startswith("sha256:")
        assert attrs == {
            "source": "/videos/01_0014.avi", "source_bytes": 123, "source_mtime_ns": 1_700_000_000_123_456_789,
            "frames": 90, "fps": 24.5, "codec": "mpeg4", "damaged": True, "damaged_packets": 2,
        }
        assert {type(value) for value in attrs.values()} == {str, int, float, bool}
        np.testing.assert_array_equal(video.feature_dataset[1:3], np.concatenate([rows(1, 3), rows(2, 2)])[1:3])


def test_plain_h5py_needs_nothing_of_us(path):
    make(path, "Abuse/Abuse001_x264")
    with h5py.File(path) as h5:
        assert h5.attrs["format"] == "streamfeat" and h5.attrs["format_version"] == 1
        assert json.loads(h5.attrs["recipe"])["clip_frames"] == 16
        video = h5["videos/Abuse/Abuse001_x264"]
        np.testing.assert_array_equal(video["features"][:], rows(0, 4))
        assert video["features"].dtype == "<f4" and video["start_frame"].dtype == "<i8"
        assert [dim.label for dim in video["features"].dims] == ["clip", "statistic", "channel"]
        assert video["features"].chunks is None
        visited = []
        h5.visit(visited.append)
        assert sorted(visited) == [
            "failures", "videos", "videos/Abuse", "videos/Abuse/Abuse001_x264",
            "videos/Abuse/Abuse001_x264/features", "videos/Abuse/Abuse001_x264/start_frame",
        ]


def test_the_checksum_is_what_the_documentation_says(path):
    make(path, "a")
    with h5py.File(path) as h5:
        video = h5["videos/a"]
        expected = hashlib.sha256(video["features"][:].tobytes() + video["start_frame"][:].tobytes()).hexdigest()
        assert video.attrs["checksum"] == f"sha256:{expected}"
    with FeatureStore(path) as store:
        assert store["a"].is_intact()
    with h5py.File(path, "r+") as h5:
        h5["videos/a/features"][2, 1, 3] += 1
    with FeatureStore(path) as store:
        assert not store["a"].is_intact()


@pytest.mark.parametrize(("shape", "dims"), [((8,), ("channel",)), ((10, 3, 8), ("crop", "statistic", "channel"))])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_shapes_and_dtypes(path, shape, dims, dtype):
    make(path, "a", header=Header(RECIPE, MODEL, shape, dims, dtype))
    with FeatureStore(path) as store:
        assert store["a"].features.dtype == dtype
        np.testing.assert_array_equal(store["a"].features, rows(0, 4, shape).astype(dtype))
        assert store["a"].is_intact()


def test_a_video_without_clips(path):
    with StoreWriter.open(path, HEADER) as writer:
        writer.begin("short").finish({"frames": 7})
    with FeatureStore(path) as store:
        assert store["short"].features.shape == (0, 3, 8)
        assert store["short"].start_frame.shape == (0,)
        assert store["short"].is_intact()
    with h5py.File(path) as h5:
        assert h5["videos/short/features"][:].shape == (0, 3, 8)


def test_long_videos_spill_and_are_the_same(path, monkeypatch):
    monkeypatch.setattr(appending, "SPILL_BYTES", 10_000)
    monkeypatch.setattr(appending, "_CHUNK_BYTES", 3_000)
    with StoreWriter.open(path, HEADER) as writer:
        videos = [writer.begin(name) for name in ("a", "b", "given up")]
        pieces = [[], []]
        for step in range(100):
            for which, video in enumerate(videos):
                piece = rows(step * 3 + which, step % 13)
                video.append(piece, np.arange(step % 13))
                if which < 2:
                    pieces[which].append(piece)
            if step == 50:
                writer.commit()
        videos[2].abandon()
        for video in videos[:2]:
            video.finish({})
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"]
        for name, expected in zip("ab", pieces, strict=True):
            np.testing.assert_array_equal(store[name].features, np.concatenate(expected))
            assert len(store[name].start_frame) == store[name].clips
            assert store[name].is_intact()
        assert store["a"].feature_dataset.chunks is not None


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """Ten times the clips, 230 MB more of features, in a process of its own: the same peak within a few MB."""
    program = """
import resource, sys
import numpy as np
from streamfeat.store import Header, StoreWriter

path, clips = sys.argv[1], int(sys.argv[2])
piece = np.ones((64, 3, 1408), np.float32)
with StoreWriter.open(path, Header({}, {}, (3, 1408), ("statistic", "channel"))) as writer:
    video = writer.begin("long")
    for start in range(0, clips, len(piece)):
        video.append(piece, np.arange(start, start + len(piece)))
        if start % 1024 == 0:
            writer.commit()
    video.finish({})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for clips in (1_500, 15_000):
        output = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"{clips}.h5"), str(clips)],
            check=True, capture_output=True, text=True,
        ).stdout
        peaks.append(int(output))
    assert peaks[1] - peaks[0] < 8 * 1024, f"{peaks} KiB"


# --- names ---------------------------------------------------------------------------------------------------


WEIRD = [
    "a b", ".hidden", "100%", "ünï/çødé", "视频/监控 01", "e\u0301", "é", "x" * 4000, "..." , "-rf", "a\\b",
    "new\nline",
    "features", "labels/start_frame", "C:", "*?[0]", "tab\there", "a/b/c/d/e/f/g/h", "emoji 🎥", "a,b;c", "'quoted\"",
]


def test_any_name_a_file_can_have(path):
    assert check_names(WEIRD) == []
    with StoreWriter.open(path, HEADER) as writer:
        for seed, name in enumerate(WEIRD):
            add(writer, name, seed=seed)
            writer.fail(f"failed {name}", "decode", "no reason")
        assert writer.videos.keys() == set(WEIRD)
    with FeatureStore(path) as store:
        assert set(store) == set(WEIRD) and len(store) == len(WEIRD)
        assert set(store.failures) == {f"failed {name}" for name in WEIRD}
        for seed, name in enumerate(WEIRD):
            assert name in store
            np.testing.assert_array_equal(store[name].features, rows(seed, 4))
    with StoreWriter.open(path, HEADER) as writer:
        assert writer.videos.keys() == set(WEIRD)


def test_names_are_in_natural_order(path):
    names = ["v2", "v10", "v1", "b/v10", "b/v9", "B/v1", "v01", "10", "9"]
    make(path, *names)
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
        add(writer, "fine")
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
            add(writer, first)
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
                add(writer, name, seed=seed)
            writer.commit()
            add(writer, "a", seed=7)
        with FeatureStore(path) as store:
            assert list(store) == ["a", "a/b"]
            np.testing.assert_array_equal(store["a"].features, rows(7, 4))
            np.testing.assert_array_equal(store["a/b"].features, rows(names.index("a/b"), 4))


# --- going on ------------------------------------------------------------------------------------------------


def test_a_store_is_continued_and_its_videos_replaced(path):
    make(path, "a", "b")
    with StoreWriter.open(path, HEADER) as writer:
        assert {name: record.source_bytes for name, record in writer.videos.items()} == {"a": 1000, "b": 1001}
        assert writer.videos["a"].frames == 67 and writer.videos["a"].source_mtime_ns is None
        assert writer.videos["a"].damaged_packets == 0
        writer.set_labels("a", np.ones(67), np.ones(4))
        add(writer, "a", clips=6, seed=5, damaged_packets=3)
        assert writer.videos["a"].damaged_packets == 3
        add(writer, "c", seed=6)
        assert set(writer.videos) == {"a", "b", "c"}
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store["a"].features, rows(5, 6))
        assert store["a"].labels is None, "labels are of the features they were aligned with"
        np.testing.assert_array_equal(store["b"].features, rows(1, 4))


def test_failures_stay_until_the_video_succeeds(path):
    with StoreWriter.open(path, HEADER) as writer:
        add(writer, "good before")
        writer.fail("good before", "decode", "vanished")
        writer.fail("bad", "probe", "is empty")
        writer.fail("bad", "decode", "nul \0 and \udcff")
        writer.fail("bad/below", "model", "not finite")
    with FeatureStore(path) as store:
        assert list(store) == ["good before"], "what a video had stays; its attributes tell of which source"
        assert list(store.failures) == ["bad", "bad/below", "good before"]
        failure = store.failures["bad"]
        assert (failure.stage, failure.error) == ("decode", "nul � and �")
        assert failure.when.endswith("+00:00")
    with StoreWriter.open(path, HEADER) as writer:
        assert writer.failures["bad/below"] == Failure("model", "not finite", writer.failures["bad/below"].when)
        for name in ("bad", "good before"):
            add(writer, name)
        assert set(writer.failures) == {"bad/below"}
    with FeatureStore(path) as store:
        assert list(store) == ["bad", "good before"]
        assert set(store.failures) == {"bad/below"}


@pytest.mark.parametrize(("changed", "field", "values"), [
    (Header({**RECIPE, "clip_frames": 32}, MODEL, (3, 8), HEADER.dims), "recipe.clip_frames", (16, 32)),
    (Header({**RECIPE, "new": 1}, MODEL, (3, 8), HEADER.dims), "recipe.new", (None, 1)),
    (Header(RECIPE, {**MODEL, "sha256": "cd" * 32}, (3, 8), HEADER.dims), "model.sha256", ("ab" * 32, "cd" * 32)),
    (Header(RECIPE, {**MODEL, "size": "vit_b"}, (3, 8), HEADER.dims), "model.size", ("vit_tiny", "vit_b")),
    (Header(RECIPE, MODEL, (3, 8), HEADER.dims, "float16"), "dtype", ("float32", "float16")),
    (Header(RECIPE, MODEL, (3, 9), HEADER.dims), "row_shape", ([3, 8], [3, 9])),
])
def test_another_recipe_or_model_is_refused(path, changed, field, values):
    make(path, "a")
    before = content(path)
    with pytest.raises(StoreMismatch, match=r"out\.h5: was made differently .*--overwrite") as caught:
        StoreWriter.open(path, changed)
    assert caught.value.differences == {field: values}
    assert content(path) == before and os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_names_of_recipe_and_weights_decide_nothing(path):
    make(path, "a")
    make(path, "b", header=Header({**RECIPE, "name": "mine"}, {**MODEL, "source": "elsewhere"}, (3, 8), HEADER.dims))
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"] and store.recipe["name"] == "wsvad"


def test_overwriting_keeps_the_old_store_until_the_new_one_has_something(path):
    make(path, "old")
    other = Header({"name": "other"}, MODEL, (5,), ("channel",), "float16")
    with StoreWriter.open(path, other, overwrite=True) as writer:
        pass
    with FeatureStore(path) as store:
        assert list(store) == ["old"]
    with StoreWriter.open(path, other, overwrite=True) as writer:
        with FeatureStore(path) as store:
            assert list(store) == ["old"]
        add(writer, "new")
        writer.commit()
        with FeatureStore(path) as store:
            assert list(store) == ["new"] and store.recipe == {"name": "other"}
        add(writer, "newer")
    with FeatureStore(path) as store:
        assert list(store) == ["new", "newer"]
    assert os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_a_run_that_did_nothing_leaves_a_new_store_and_an_old_one_untouched(path):
    StoreWriter.open(path, HEADER).close()
    with FeatureStore(path) as store:
        assert list(store) == [] and store.failures == {}
    before = content(path)
    StoreWriter.open(path, HEADER).close()
    assert content(path) == before


def test_nothing_is_visible_before_the_commit(path):
    make(path, "a")
    writer = StoreWriter.open(path, HEADER)
    add(writer, "b")
    writer.fail("c", "decode", "x")
    with FeatureStore(path) as store, h5py.File(path) as h5:
        assert list(store) == list(h5["videos"]) == ["a"]
    writer.commit()
    with FeatureStore(path) as store, h5py.File(path) as h5:
        assert list(store) == list(h5["videos"]) == ["a", "b"]
        assert list(store.failures) == ["c"]
    add(writer, "d")
    writer.abort()
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"]
    assert os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_an_exception_drops_what_was_not_committed(path):
    make(path, "a")
    with pytest.raises(ZeroDivisionError), StoreWriter.open(path, HEADER) as writer:
        add(writer, "b")
        raise ZeroDivisionError
    with FeatureStore(path) as store:
        assert list(store) == ["a"]


def test_every_commit_ends_at_the_end_that_hdf5_states_and_changes_the_first_page(path):
    """Readers and the next writer rely on both."""
    writer = StoreWriter.open(path, HEADER)
    first_pages = set()

    def commit():
        writer.commit()
        with open(path, "rb") as file:
            assert committed_length(file.fileno()) == os.path.getsize(path)
            first_pages.add(file.read(4096))
        with h5py.File(path) as h5:
            assert h5.attrs["commits"] == len(first_pages)

    for seed in range(30):
        add(writer, f"v{seed}", seed=seed)
        writer.fail(f"f{seed}", "decode", "x" * 300)
        commit()
    writer.set_labels("v3", np.ones(67), np.ones(4))
    commit()
    writer.clear_labels()
    commit()
    writer.close()


# --- labels --------------------------------------------------------------------------------------------------


def test_labels_come_and_go(path):
    make(path, "a", "b/c")
    with StoreWriter.open_existing(path) as writer:
        writer.set_labels("a", np.arange(67) > 30, np.array([0.0, 1.0, 1.0, 0.0]), {"aligned_clips": 4, "source": "p"})
        writer.set_labels("b/c", [0] * 67, [0] * 4)
        with pytest.raises(KeyError):
            writer.set_labels("nobody", [0], [0])
    with FeatureStore(path) as store:
        labels = store["a"].labels
        assert labels.frame.dtype == labels.clip.dtype == np.uint8
        assert labels.frame.tolist() == [0] * 31 + [1] * 36 and labels.clip.tolist() == [0, 1, 1, 0]
        assert labels.attrs == {"source": "p"} and store["a"].aligned_clips == 4
        assert store["b/c"].labels.clip.tolist() == [0] * 4
        assert list(store) == ["a", "b/c"]
        assert all(video.is_intact() for video in store.values())
    with StoreWriter.open_existing(path) as writer:
        writer.set_labels("a", [1], [1])
    with FeatureStore(path) as store:
        assert store["a"].labels.frame.tolist() == [1] and store["a"].aligned_clips is None
    with pytest.raises(ZeroDivisionError), StoreWriter.open_existing(path) as writer:
        writer.clear_labels()
        raise ZeroDivisionError
    with FeatureStore(path) as store:
        assert store["a"].labels is not None and store["b/c"].labels is not None
    with StoreWriter.open_existing(path) as writer:
        writer.clear_labels()
    with FeatureStore(path) as store:
        assert all(video.labels is None and video.aligned_clips is None for video in store.values())


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_feature_that_is_not_finite(path, value):
    with StoreWriter.open(path, HEADER) as writer:
        video = writer.begin("a")
        video.append(rows(1, 2), [0, 16])
        bad = rows(2, 2)
        bad[1, 2, 7] = value
        with pytest.raises(BadFeatures, match="a: has features that are not finite"):
            video.append(bad, [32, 48])
        video.append(rows(3, 1), [32])
        video.finish({})
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store["a"].features, np.concatenate([rows(1, 2), rows(3, 1)]))
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
    make(path, "a")
    with StoreWriter.open(path, HEADER) as writer, pytest.raises(TypeError):
        add(writer, "a", clips=9, weird=object())
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
    make(path, "a")
    with h5py.File(path, "r+") as h5:
        h5.attrs["format_version"] = 2
    before = content(path)
    for attempt in (lambda: StoreWriter.open(path, HEADER), lambda: FeatureStore(path)):
        with pytest.raises(StoreTooNew, match=r"out\.h5: has format version 2.*update streamfeat"):
            attempt()
    assert content(path) == before
    make_over = StoreWriter.open(path, HEADER, overwrite=True)
    add(make_over, "b")
    make_over.close()
    with FeatureStore(path) as store:
        assert list(store) == ["b"]


def test_a_cut_store_says_so(path):
    make(path, "a", "b")
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


# --- other processes -----------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_first(path, tmp_path):
    make(path, "a")
    program = (
        "import sys\n"
        "from streamfeat.store import StoreWriter\n"
        "writer = StoreWriter.open_existing(sys.argv[1])\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "open\n"
        link = tmp_path / "link.h5"
        link.symlink_to(path)
        for _ in range(3):
            for attempt in (
                lambda: StoreWriter.open(path, HEADER),
                lambda: StoreWriter.open(path, HEADER, overwrite=True),
                lambda: StoreWriter.open_existing(link),
            ):
                with pytest.raises(StoreLocked, match=f"process {child.pid} is writing it") as caught:
                    attempt()
                assert caught.value.pid == child.pid
        with FeatureStore(path) as store:
            assert list(store) == ["a"]
    finally:
        child.kill()
        child.communicate()
    make(path, "b")
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"]
    assert sorted(os.listdir(tmp_path)) == ["link.h5", "out.h5"]


def test_a_writer_in_the_same_process_is_refused_too(path):
    writer = StoreWriter.open(path, HEADER)
    with pytest.raises(StoreLocked) as caught:
        StoreWriter.open(path, HEADER)
    assert caught.value.pid == os.getpid()
    writer.close()
    StoreWriter.open(path, HEADER).close()


def test_a_reader_follows_a_writer_at_work(path):
    """Reads while another process commits without pause: every answer is of one committed state."""
    program = """
import sys
import numpy as np
from streamfeat.store import Header, StoreWriter

with StoreWriter.open(sys.argv[1], Header({}, {}, (8,), ("channel",))) as writer:
    for index in range(400):
        video = writer.begin(f"folder {index % 7}/v{index}")
        video.append(np.full((2, 8), index, np.float32), np.arange(2))
        video.finish({"index": index})
        if index % 5 == 0:
            writer.begin("again").finish({"index": index})
        writer.commit()
        if index == 0:
            print("committed", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "committed\n"
    kept = FeatureStore(path)
    counts = []
    while child.poll() is None or not counts:
        with FeatureStore(path) as store:
            count = len(store) - 1
            counts.append(count)
            last = store[f"folder {(count - 1) % 7}/v{count - 1}"]
            assert last.attrs["index"] == count - 1 and last.is_intact()
            # One reader may see a commit from its journal while it is not yet in the file, and for the other one.
            deadline = time.monotonic() + 10
            while last.name not in kept and time.monotonic() < deadline:
                time.sleep(0.001)
            assert kept[last.name].features[0, 0] == count - 1
    assert child.wait() == 0
    assert counts == sorted(counts) and len(set(counts)) > 3
    kept.close()


def test_disk_full_leaves_the_last_commit(path):
    """A file size limit in a process of its own, which the kernel enforces as it does a full disk."""
    program = """
import resource, sys
import numpy as np
from streamfeat.store import Header, StoreError, StoreWriter

writer = StoreWriter.open(sys.argv[1], Header({}, {}, (3, 1408), ("statistic", "channel")))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    for index in range(1000):
        video = writer.begin(f"v{index}")
        for _ in range(int(sys.argv[3])):
            video.append(np.full((8, 3, 1408), index, np.float32), np.arange(8))
        video.finish({})
        writer.commit()
        print(f"v{index}", flush=True)
except StoreError as error:
    print(error, file=sys.stderr)
    try:
        writer.commit()
    except StoreError:
        pass
    writer.close()
    sys.exit(3)
"""
    # Small videos fail in the commit, large ones while they spill; limits that are no page's end tear a write.
    for limit, pieces in ((1_000_003, 1), (2_345_678, 3), (20_000_001, 60), (3_000_000, 60), (10_000, 1)):
        child = subprocess.run(
            [sys.executable, "-c", program, path, str(limit), str(pieces)], capture_output=True, text=True
        )
        assert child.returncode == 3, child.stderr
        assert len(child.stderr.splitlines()) == 1
        assert "out.h5: cannot be written (File too large)" in child.stderr
        done = child.stdout.split()
        if not done:
            assert os.listdir(os.path.dirname(path)) == []
            continue
        with FeatureStore(path) as store:
            assert list(store) == done
            assert all(video.is_intact() for video in store.values())
        with h5py.File(path) as h5:
            assert sorted(h5["videos"]) == sorted(done)
        with StoreWriter.open_existing(path) as writer:
            video = writer.begin("after")
            video.append(np.ones((1, 3, 1408), np.float32), [0])
            video.finish({})
        with FeatureStore(path) as store:
            assert set(store) == {*done, "after"}
        os.unlink(path)


def test_a_store_that_may_not_be_written_is_read(path, monkeypatch):
    """With a commit left half done beside it: read through the journal, and nothing is written."""
    make(path, "a")

    class Killed(BaseException):
        pass

    writes = 0

    def die(call, arguments):
        nonlocal writes
        writes += call == "pwrite" and os.path.exists(path + ".journal")
        if writes == 3:
            raise Killed

    writer = StoreWriter.open(path, HEADER)
    for index in range(60):
        add(writer, f"b{index}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(disk, "os", WatchedOS(die))
        writer.commit()
    writer._file._in_doubt = True  # the process is dead: nothing tidies up
    writer._lock.release()
    before = content(path), content(path + ".journal")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with FeatureStore(path) as store:
            assert len(store) == 61 and all(video.is_intact() for video in store.values())
    assert (content(path), content(path + ".journal")) == before
    with FeatureStore(path) as store:
        assert len(store) == 61
    assert os.listdir(os.path.dirname(path)) == ["out.h5"], "who may write has finished the commit"
    with h5py.File(path) as h5:
        assert len(h5["videos"]) == 61


def test_a_new_store_has_the_permissions_of_any_new_file(path):
    make(path, "a")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666 & ~umask


def test_thousands_of_videos_are_listed_at_once(path):
    with StoreWriter.open(path, HEADER) as writer:
        for index in range(1000):
            add(writer, f"part {index % 5}/video_{index}", clips=1)
    started = time.perf_counter()
    with StoreWriter.open(path, HEADER) as writer:
        assert len(writer.videos) == 1000
    assert time.perf_counter() - started < 2
