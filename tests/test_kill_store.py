"""A writer that dies at any instant loses nothing that it said was done."""

import json
import os
import random
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from streamfeat.store import FeatureStore, Header, StoreError, StoreWriter, appending
from streamfeat.store.journal import disk
from tests.disks import LossyDisk, WatchedOS

HEADER = Header({"name": "kill"}, {}, (3, 8), ("statistic", "channel"))
OTHER = Header({"name": "other", "clip_stride": 4}, {}, (3, 8), ("statistic", "channel"))


def add(writer, name, value, clips=3):
    video = writer.begin(name)
    for _ in range(clips):
        video.append(np.full((1, 3, 8), value, np.float32), [value])
    video.finish({"source": name, "value": value})


def session(path, committed):
    """All that a store goes through; ``committed(expected)`` after every commit, with what it holds now."""
    state = {}

    def commit(writer):
        writer.commit()
        committed(dict(state))

    with StoreWriter.open(path, HEADER) as writer:
        for index in range(3):
            add(writer, f"folder/v{index}", index)
            writer.fail(f"bad{index}", "decode", "reason")
            state |= {f"folder/v{index}": index, f"bad{index}": "decode"}
            commit(writer)
        add(writer, "folder/v1", 11)
        add(writer, "bad1", 12, clips=40)
        state |= {"folder/v1": 11, "bad1": 12}
        unfinished = writer.begin("unfinished")
        for _ in range(40):
            unfinished.append(np.zeros((1, 3, 8), np.float32), [0])
        commit(writer)
        add(writer, "at close", 13, clips=0)
        state["at close"] = None
    committed(dict(state))
    with StoreWriter.open_existing(path) as writer:
        writer.set_labels("folder/v0", np.ones(50), np.ones(3), {"aligned_clips": 3})
        state["labels"] = True
        commit(writer)
        writer.clear_labels()
        del state["labels"]
    committed(dict(state))
    with StoreWriter.open(path, OTHER, overwrite=True) as writer:
        add(writer, "new", 14)
        state.clear()
        state["new"] = 14
        commit(writer)
        add(writer, "newer", 15)
        state["newer"] = 15
    committed(dict(state))


def contents(path):
    """What ``session`` would say of the store at ``path``, every number of which is checked."""
    if not os.path.exists(path):
        return {}
    with FeatureStore(path) as store:
        state = {name: failure.stage for name, failure in store.failures.items()}
        for name, video in store.items():
            value = video.attrs["value"]
            assert (video.features == value).all() and (video.start_frame == value).all()
            assert video.is_intact()
            state[name] = value if video.clips else None
            if video.labels is not None:
                assert video.labels.frame.sum() == 50 and video.aligned_clips == 3
                state["labels"] = True
    return state


def check_plain(path, state):
    """Plain h5py visits and reads everything."""
    if not state:
        return
    with h5py.File(path) as h5:
        arrays = {}
        h5.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        videos = {name for name in state if state[name] != "decode" and name != "labels"}
        assert {name for name in arrays if name.endswith("/features")} == {f"videos/{name}/features" for name in videos}


def check_goes_on(path):
    header = HEADER
    if os.path.exists(path):
        with FeatureStore(path) as store:
            header = store.header
    before = contents(path)
    with StoreWriter.open(path, header) as writer:
        add(writer, "afterwards", 99)
    assert contents(path) == {**before, "afterwards": 99}
    assert os.listdir(os.path.dirname(path)) == ["out.h5"]


@pytest.fixture
def small_spills(monkeypatch):
    monkeypatch.setattr(appending, "SPILL_BYTES", 2000)
    monkeypatch.setattr(appending, "_CHUNK_BYTES", 500)


@pytest.fixture
def states(tmp_path, small_spills):
    """What the store holds after each commit of the session."""
    states = [{}]
    (tmp_path / "reference").mkdir()
    session(str(tmp_path / "reference" / "out.h5"), states.append)
    assert contents(str(tmp_path / "reference" / "out.h5")) == states[-1] and len(states) == 10
    return states


def test_killed_at_any_operation(tmp_path, monkeypatch, states):
    """The files as they are before every single operation, and amid every write, are opened as after a kill."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = str(folder / "out.h5")
    points, seen = [], set()
    done = 0

    def keep():
        files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
        fingerprint = tuple(sorted(files.items()))
        if fingerprint not in seen:
            seen.add(fingerprint)
            points.append((files, done))

    def before(call, arguments):
        keep()
        if call == "pwrite":
            fd, data, offset = arguments
            part = len(data) // 2
            old, size = os.pread(fd, part, offset), os.fstat(fd).st_size
            os.pwrite(fd, data[:part], offset)
            keep()
            os.pwrite(fd, old, offset)
            os.ftruncate(fd, size)

    def committed(state):
        nonlocal done
        done += 1
        assert state == states[done]

    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", WatchedOS(before))
        session(path, committed)
    assert len(points) > 200
    reached = set()
    for number, (files, done) in enumerate(points):
        shutil.rmtree(folder)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        found = contents(path)
        assert found in states[done : done + 2], number
        reached.add(states.index(found, done))
        check_plain(path, found)
        assert not os.path.exists(path + ".journal")
        if number % 4 == 0:
            check_goes_on(path)
    assert reached == set(range(len(states)))


def test_power_failure_at_any_moment(tmp_path, monkeypatch, states):
    """As after a kill, but of what was not synced any part may be missing."""
    folder = tmp_path / "run"
    folder.mkdir()
    lossy = LossyDisk(str(folder))
    moments = [0]
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", lossy)
        session(str(folder / "out.h5"), lambda state: moments.append(len(lossy.history)))
    chance = random.Random(3)
    after = tmp_path / "after"
    for moment in range(len(lossy.history) + 1):
        done = sum(moment >= first for first in moments) - 1
        after.mkdir()
        lossy.after_power_failure(moment, chance, str(after))
        found = contents(str(after / "out.h5"))
        assert found in states[done : done + 2], moment
        check_plain(str(after / "out.h5"), found)
        shutil.rmtree(after)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_an_error_at_any_operation(tmp_path, monkeypatch, states, lasting):
    """Disk full or broken at the k-th operation: one StoreError, the last commit stands, and it can go on."""
    k = failures = 0
    while True:
        folder = tmp_path / f"run{k}"
        folder.mkdir()
        path = str(folder / "out.h5")
        count = done = 0

        def before(call, arguments):
            nonlocal count
            count += 1
            if count > k if lasting else count == k + 1:  # noqa: B023
                raise OSError(28, "No space left on device")

        def committed(state):
            nonlocal done
            done += 1

        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", WatchedOS(before))
            try:
                session(path, committed)
            except StoreError as error:
                failures += 1
                assert "No space left on device" in str(error) and "\n" not in str(error)
        found = contents(path)
        assert found in states[done : done + 2], k
        check_plain(path, found)
        if count <= k:
            assert done == len(states) - 1
            break
        check_goes_on(path)
        shutil.rmtree(folder)
        # Every operation of the first commits, then fewer: they come again.
        k += 1 if k < 60 else 5
    assert failures > 80


def test_two_hundred_kills(tmp_path):
    """Real processes, killed at random instants; after each, all that was said to be done is there."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.kill_loop", str(tmp_path), "200", "7"],
        check=True, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.dirname(__file__)),
    ).stdout
    result = json.loads(output)
    assert result["kills"] == 200
    assert result["said"] > 200, "one a kill, on a busy machine too"
