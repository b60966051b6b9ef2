"""The store among others: processes that read and write it, a disk that is full, and somebody else's permissions."""

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamfeat.store import FeatureStore, StoreLocked, StoreWriter
from streamfeat.store.journal import disk
from tests.disks import WatchedOS
from tests.feature_stores import HEADER, add_video, make_store


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


def test_a_second_writer_is_told_who_is_first(path, tmp_path):
    make_store(path, "a")
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
    make_store(path, "b")
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
    make_store(path, "a")

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
        add_video(writer, f"b{index}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(disk, "os", WatchedOS(die))
        writer.commit()
    writer._file._in_doubt = True  # the process is dead: nothing tidies up
    writer._lock.release()
    before = Path(path).read_bytes(), Path(path + ".journal").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with FeatureStore(path) as store:
            assert len(store) == 61 and all(video.is_intact() for video in store.values())
    assert (Path(path).read_bytes(), Path(path + ".journal").read_bytes()) == before
    with FeatureStore(path) as store:
        assert len(store) == 61
    assert os.listdir(os.path.dirname(path)) == ["out.h5"], "who may write has finished the commit"
    with h5py.File(path) as h5:
        assert len(h5["videos"]) == 61
