"""The store: what is put in comes out, and nothing else happens to the file."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamfeat.store import Failure, FeatureStore, Header, StoreMismatch, StoreWriter, appending
from streamfeat.store.journal import committed_length
from tests.feature_stores import HEADER, MODEL, RECIPE, add_video, features_of, make_store


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


# --- in and out ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read(path):
    with StoreWriter.open(path, HEADER) as writer:
        video = writer.begin("01_0014")
        video.append(features_of(1, 3), [0, 16, 32])
        video.append(features_of(2, 2), [48, 64])
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
        np.testing.assert_array_equal(video.features, np.concatenate([features_of(1, 3), features_of(2, 2)]))
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
        np.testing.assert_array_equal(video.feature_dataset[1:3], video.features[1:3])


def test_plain_h5py_needs_nothing_of_us(path):
    make_store(path, "Abuse/Abuse001_x264")
    with h5py.File(path) as h5:
        assert h5.attrs["format"] == "streamfeat" and h5.attrs["format_version"] == 1
        assert json.loads(h5.attrs["recipe"])["clip_frames"] == 16
        video = h5["videos/Abuse/Abuse001_x264"]
        np.testing.assert_array_equal(video["features"][:], features_of(0, 4))
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
    make_store(path, "a")
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
    make_store(path, "a", header=Header(RECIPE, MODEL, shape, dims, dtype))
    with FeatureStore(path) as store:
        assert store["a"].features.dtype == dtype
        np.testing.assert_array_equal(store["a"].features, features_of(0, 4, shape).astype(dtype))
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
                piece = features_of(step * 3 + which, step % 13)
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


def test_a_new_store_has_the_permissions_of_any_new_file(path):
    make_store(path, "a")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666 & ~umask


# --- going on ------------------------------------------------------------------------------------------------


def test_a_store_is_continued_and_its_videos_replaced(path):
    make_store(path, "a", "b")
    with StoreWriter.open(path, HEADER) as writer:
        assert {name: record.source_bytes for name, record in writer.videos.items()} == {"a": 1000, "b": 1001}
        assert writer.videos["a"].frames == 67 and writer.videos["a"].source_mtime_ns is None
        assert writer.videos["a"].damaged_packets == 0
        writer.set_labels("a", np.ones(67), np.ones(4))
        add_video(writer, "a", clips=6, seed=5, damaged_packets=3)
        assert writer.videos["a"].damaged_packets == 3
        add_video(writer, "c", seed=6)
        assert set(writer.videos) == {"a", "b", "c"}
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store["a"].features, features_of(5, 6))
        assert store["a"].labels is None, "labels are of the features they were aligned with"
        np.testing.assert_array_equal(store["b"].features, features_of(1, 4))


def test_failures_stay_until_the_video_succeeds(path):
    with StoreWriter.open(path, HEADER) as writer:
        add_video(writer, "good before")
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
            add_video(writer, name)
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
    make_store(path, "a")
    before = Path(path).read_bytes()
    with pytest.raises(StoreMismatch, match=r"out\.h5: was made differently .*--overwrite") as caught:
        StoreWriter.open(path, changed)
    assert caught.value.differences == {field: values}
    assert Path(path).read_bytes() == before and os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_names_of_recipe_and_weights_decide_nothing(path):
    make_store(path, "a")
    renamed = Header({**RECIPE, "name": "mine"}, {**MODEL, "source": "elsewhere"}, (3, 8), HEADER.dims)
    make_store(path, "b", header=renamed)
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"] and store.recipe["name"] == "wsvad"


def test_overwriting_keeps_the_old_store_until_the_new_one_has_something(path):
    make_store(path, "old")
    other = Header({"name": "other"}, MODEL, (5,), ("channel",), "float16")
    with StoreWriter.open(path, other, overwrite=True) as writer:
        pass
    with FeatureStore(path) as store:
        assert list(store) == ["old"]
    with StoreWriter.open(path, other, overwrite=True) as writer:
        with FeatureStore(path) as store:
            assert list(store) == ["old"]
        add_video(writer, "new")
        writer.commit()
        with FeatureStore(path) as store:
            assert list(store) == ["new"] and store.recipe == {"name": "other"}
        add_video(writer, "newer")
    with FeatureStore(path) as store:
        assert list(store) == ["new", "newer"]
    assert os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_a_run_that_did_nothing_leaves_a_new_store_and_an_old_one_untouched(path):
    StoreWriter.open(path, HEADER).close()
    with FeatureStore(path) as store:
        assert list(store) == [] and store.failures == {}
    before = Path(path).read_bytes()
    StoreWriter.open(path, HEADER).close()
    assert Path(path).read_bytes() == before


def test_nothing_is_visible_before_the_commit(path):
    make_store(path, "a")
    writer = StoreWriter.open(path, HEADER)
    add_video(writer, "b")
    writer.fail("c", "decode", "x")
    with FeatureStore(path) as store, h5py.File(path) as h5:
        assert list(store) == list(h5["videos"]) == ["a"]
    writer.commit()
    with FeatureStore(path) as store, h5py.File(path) as h5:
        assert list(store) == list(h5["videos"]) == ["a", "b"]
        assert list(store.failures) == ["c"]
    add_video(writer, "d")
    writer.abort()
    with FeatureStore(path) as store:
        assert list(store) == ["a", "b"]
    assert os.listdir(os.path.dirname(path)) == ["out.h5"]


def test_an_exception_drops_what_was_not_committed(path):
    make_store(path, "a")
    with pytest.raises(ZeroDivisionError), StoreWriter.open(path, HEADER) as writer:
        add_video(writer, "b")
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
        add_video(writer, f"v{seed}", seed=seed)
        writer.fail(f"f{seed}", "decode", "x" * 300)
        commit()
    writer.set_labels("v3", np.ones(67), np.ones(4))
    commit()
    writer.clear_labels()
    commit()
    writer.close()


def test_thousands_of_videos_are_listed_at_once(path):
    with StoreWriter.open(path, HEADER) as writer:
        for index in range(1000):
            add_video(writer, f"part {index % 5}/video_{index}", clips=1)
    started = time.perf_counter()
    with StoreWriter.open(path, HEADER) as writer:
        assert len(writer.videos) == 1000
    assert time.perf_counter() - started < 2


# --- labels --------------------------------------------------------------------------------------------------


def test_labels_come_and_go(path):
    make_store(path, "a", "b/c")
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
