"""The file object below HDF5: it is a file, and its commits are atomic."""

import os
import random
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfeat.store import StoreError
from streamfeat.store.journal import CommittedFile, JournaledFile, committed_length, disk, recover
from tests.disks import LossyDisk, WatchedOS

CONTENT = bytes(range(256)) * 45  # 11520 bytes: two pages and a part


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "data.bin")
    with open(path, "wb") as file:
        file.write(CONTENT)
    return path


def content(path):
    with open(path, "rb") as file:
        return file.read()


def committed(path):
    with CommittedFile(path) as file:
        return file.read()


def write(file, offset, data):
    file.seek(offset)
    assert file.write(data) == len(data)


# Offsets around the pages' borders and the committed end are where mistakes live.
OFFSETS = st.one_of(st.integers(0, 14_000), st.sampled_from([4095, 4096, 4097, 8192, 11519, 11520, 11521, 12288]))
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, st.binary(min_size=1, max_size=40).map(lambda data: data * 150)),
    st.tuples(st.just("write"), OFFSETS, st.binary(max_size=40)),
    st.tuples(st.just("truncate"), OFFSETS),
    st.tuples(st.just("read"), OFFSETS, st.integers(0, 9000)),
    st.tuples(st.just("commit")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("fill the disk")),
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=25), start=st.binary(max_size=50).map(lambda data: data * 200))
def test_it_is_a_file_whose_uncommitted_part_nobody_else_sees(tmp_path, steps, start):
    """Against a bytearray: what is read back, and what everybody else sees, after any sequence of operations."""
    path = str(tmp_path / "data.bin")
    with open(path, "wb") as raw:
        raw.write(start)
    now, safe, full = bytearray(start), bytes(start), False

    def refuse(call, arguments):
        if full:
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "os", WatchedOS(refuse))
        file = JournaledFile(path)
        for kind, *step in steps:
            if kind == "write":
                offset, data = step
                write(file, offset, data)
                if data:
                    now.extend(bytes(max(0, offset + len(data) - len(now))))
                    now[offset : offset + len(data)] = data
            elif kind == "truncate":
                (size,) = step
                file.truncate(size)
                del now[size:]
                now.extend(bytes(size - len(now)))
            elif kind == "read":
                offset, count = step
                file.seek(offset)
                assert file.read(count) == now[offset : offset + count]
            elif kind == "fill the disk":
                full = True
            elif kind == "reopen":
                full = False
                file.close()
                assert content(path) == safe
                file = JournaledFile(path)
                now[:] = safe
            else:
                try:
                    file.commit()
                    safe = bytes(now)
                except StoreError:
                    assert full
            assert file.seek(0, os.SEEK_END) == len(now)
            file.seek(0)
            assert file.read() == now
            # What was appended may already be in the file: HDF5's superblock says where the committed part ends.
            assert content(path)[: len(safe)] == safe
        full = False
        file.close()
    assert content(path) == safe
    assert sorted(os.listdir(tmp_path)) == ["data.bin"]


def changing_session(path):
    """Three commits that change old pages, append, and shorten; yields the content after each."""
    file = JournaledFile(path)
    write(file, 100, b"one" * 3000)
    write(file, len(CONTENT) - 10, b"tail" * 2000)
    file.commit()
    yield committed(path)
    write(file, 5000, b"two")
    file.commit()
    yield committed(path)
    file.truncate(9000)
    write(file, 0, b"three")
    file.commit()
    yield committed(path)
    write(file, 10, b"never committed")
    write(file, 9000, b"nor this")
    file.close()


def kill_points(path, tmp_path, monkeypatch):
    """Folders as they were at every operation of a session, also amid each write, with the commits then done."""
    points = []
    done = [CONTENT]

    def keep():
        folder = tmp_path / f"point{len(points)}"
        folder.mkdir()
        for suffix in ("", ".journal"):
            if os.path.exists(path + suffix):
                shutil.copy(path + suffix, folder)
        points.append((str(folder / "data.bin"), len(done) - 1))

    def before(call, arguments):
        keep()
        if call == "pwrite":
            fd, data, offset = arguments
            for part in (1, len(data) // 2, len(data) - 1):
                old = os.pread(fd, part, offset)
                size = os.fstat(fd).st_size
                os.pwrite(fd, data[:part], offset)
                keep()
                os.pwrite(fd, old, offset)
                os.ftruncate(fd, size)

    monkeypatch.setattr(disk, "os", WatchedOS(before))
    for state in changing_session(path):
        done.append(state)
    monkeypatch.undo()
    return points, done


def test_killed_at_any_operation_it_is_one_state_or_the_next(path, tmp_path, monkeypatch):
    points, states = kill_points(path, tmp_path, monkeypatch)
    assert len(points) > 60
    seen = set()
    for point, done in points:
        before = {name: content(os.path.join(os.path.dirname(point), name))
                  for name in os.listdir(os.path.dirname(point))}
        whole = committed(point)
        acceptable = [state for state in states[done : done + 2] if whole[: len(state)] == state]
        assert acceptable, point
        assert before == {name: content(os.path.join(os.path.dirname(point), name)) for name in before}
        recover(point)
        assert content(point)[: len(acceptable[-1])] == acceptable[-1]
        assert os.listdir(os.path.dirname(point)) == ["data.bin"]
        seen.add(states.index(acceptable[-1]))
    assert seen == {0, 1, 2, 3}


def test_killed_amid_recovery_it_recovers_again(path, monkeypatch):
    class Killed(BaseException):
        pass

    state = interrupted(path, monkeypatch)
    for k in range(20):
        left = k

        def before(call, arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", WatchedOS(before))
            try:
                recover(path)
                break
            except Killed:
                assert committed(path) == state
    assert k > 3
    assert content(path) == state


def test_power_failure_at_any_moment_leaves_one_state_or_the_next(path, tmp_path, monkeypatch):
    """As after a kill, but of what was not synced any part may be missing."""
    lossy = LossyDisk(os.path.dirname(path))
    monkeypatch.setattr(disk, "os", lossy)
    states, moments = [CONTENT], [0]
    for state in changing_session(path):
        states.append(state)
        moments.append(len(lossy.history))
    monkeypatch.undo()
    chance = random.Random(5)
    after = tmp_path / "after"
    for moment in range(4, len(lossy.history) + 1):
        done = sum(moment >= first for first in moments) - 1
        for _ in range(12):
            after.mkdir()
            lossy.after_power_failure(moment, chance, str(after))
            recover(str(after / "data.bin"))
            whole = content(after / "data.bin")
            assert any(whole[: len(state)] == state for state in states[done : done + 2]), moment
            shutil.rmtree(after)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
def test_any_failing_operation_leaves_the_last_committed_state(tmp_path, monkeypatch, persistent):
    """Disk full or I/O error at the k-th operation: StoreError, and everything committed is there."""
    reference = str(tmp_path / "reference.bin")
    with open(reference, "wb") as file:
        file.write(CONTENT)
    all_states = [CONTENT, *changing_session(reference)]
    k = 0
    while True:
        path = str(tmp_path / f"{k}.bin")
        with open(path, "wb") as file:
            file.write(CONTENT)
        count = 0

        def before(call, arguments, k=k):
            nonlocal count
            count += 1
            if count == k + 1 or (persistent and count > k):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "os", WatchedOS(before))
        states, failed = [CONTENT], None
        try:
            for state in changing_session(path):
                states.append(state)
        except (StoreError, OSError) as error:
            failed = error  # kept, and with it the session's file, which is not to be closed amid what follows
            assert "No space left" in str(error)
        monkeypatch.undo()
        if count <= k:
            assert len(states) == 4 and not failed
            break
        # A commit whose journal was already whole when the disk failed may count.
        acceptable = all_states[len(states) - 1 : len(states) + bool(failed)]
        assert any(committed(path)[: len(state)] == state for state in acceptable)
        recover(path)
        assert any(content(path)[: len(state)] == state for state in acceptable)
        k += 1
    assert k > 20


def test_a_failed_commit_can_be_closed_and_tried_again(path, monkeypatch):
    def full(call, arguments):
        if call == "fsync":
            raise OSError(28, "No space left on device")

    file = JournaledFile(path)
    write(file, 100, b"lost")
    write(file, 20_000, b"lost")
    monkeypatch.setattr(disk, "os", WatchedOS(full))
    with pytest.raises(StoreError, match=r"data\.bin: cannot be written \(No space left on device\)"):
        file.commit()
    with pytest.raises(StoreError, match="No space left"):
        file.commit()
    file.close()
    monkeypatch.undo()
    assert content(path) == CONTENT
    with JournaledFile(path) as file:
        write(file, 100, b"kept")
        file.commit()
    assert content(path) == CONTENT[:100] + b"kept" + CONTENT[104:]


def interrupted(path, monkeypatch):
    """Leave a whole journal beside ``path``, its commit half applied; returns the state it leads to."""

    class Killed(BaseException):
        pass

    writes = 0

    def before(call, arguments):
        nonlocal writes
        writes += call == "pwrite"
        if writes == 5:  # the tail, the journal, two of three pages
            raise Killed

    file = JournaledFile(path)
    write(file, 0, b"A" * 10_000)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(disk, "os", WatchedOS(before))
        write(file, len(CONTENT), b"B" * 10)
        file.commit()
    file._in_doubt = True  # the process is dead: nothing tidies up
    return b"A" * 10_000 + CONTENT[10_000:] + b"B" * 10


def test_a_reader_sees_through_the_journal_and_writes_nothing(path, monkeypatch):
    state = interrupted(path, monkeypatch)
    before = content(path), content(path + ".journal")
    assert before[0] != state
    assert committed(path) == state
    assert (content(path), content(path + ".journal")) == before


def test_a_stale_journal_is_never_applied(path, tmp_path, monkeypatch):
    interrupted(path, monkeypatch)
    others = {
        "another file": bytes(len(CONTENT) + 100),
        "an empty file": b"",
        "the same, changed by somebody": content(path)[:4100] + b"?" + content(path)[4101:],
        "the same, without what was appended": CONTENT,
    }
    for what, other in others.items():
        copy = str(tmp_path / "copy.bin")
        with open(copy, "wb") as file:
            file.write(other)
        shutil.copy(path + ".journal", copy + ".journal")
        assert committed(copy) == other, what
        recover(copy)
        assert content(copy) == other, what
        assert not os.path.exists(copy + ".journal")


def test_a_journal_goes_with_its_file_when_both_are_copied(path, tmp_path, monkeypatch):
    state = interrupted(path, monkeypatch)
    for suffix in ("", ".journal"):
        shutil.copy(path + suffix, tmp_path / f"copy.bin{suffix}")
    recover(str(tmp_path / "copy.bin"))
    assert content(tmp_path / "copy.bin") == state


@pytest.mark.parametrize("keep", [0, 1, 40, 5000, -1])
def test_a_torn_journal_is_dropped(path, monkeypatch, keep):
    """It was not whole when its writer died, so the file had not been touched."""
    interrupted(path, monkeypatch)
    with open(path, "wb") as file:
        file.write(CONTENT + b"B" * 10)
    os.truncate(path + ".journal", keep % os.path.getsize(path + ".journal"))
    recover(path)
    assert content(path)[: len(CONTENT)] == CONTENT
    assert not os.path.exists(path + ".journal")


def test_a_new_file_is_there_at_its_first_commit_and_not_before(tmp_path):
    path = str(tmp_path / "new.bin")
    file = JournaledFile(path, create=True)
    write(file, 0, b"first")
    assert not os.path.exists(path)
    file.commit()
    assert content(path) == b"first"
    write(file, 5, b" second")
    file.commit()
    file.close()
    assert content(path) == b"first second"
    JournaledFile(str(tmp_path / "never.bin"), create=True).close()
    assert os.listdir(tmp_path) == ["new.bin"]


def test_a_new_file_takes_the_place_and_the_permissions_of_an_old_one(path):
    os.chmod(path, 0o640)
    file = JournaledFile(path, create=True)
    write(file, 0, b"new")
    assert content(path) == CONTENT
    file.commit()
    file.close()
    assert content(path) == b"new"
    assert os.stat(path).st_mode & 0o777 == 0o640


@pytest.mark.parametrize("libver", ["earliest", ("v108", "v110"), "latest"])
def test_the_end_of_an_hdf5_file_is_read_from_its_superblock(tmp_path, libver):
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w", libver=libver) as h5:
        h5["x"] = np.arange(1000)
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(b"left over")
        file.flush()
        fd = os.open(path, os.O_RDONLY)
        assert committed_length(fd) == size
        os.close(fd)


@pytest.mark.parametrize("libver", ["earliest", ("v108", "v110")])
def test_a_file_of_plain_h5py_can_be_continued(tmp_path, libver):
    path = str(tmp_path / "plain.h5")
    with h5py.File(path, "w", libver=libver) as h5:
        h5["x"] = np.arange(1000)
    with open(path, "ab") as file:
        file.write(b"left over" * 1000)
    for step in range(3):
        file = JournaledFile(path)
        h5 = h5py.File(file, "r+")
        h5[f"y{step}"] = np.full(5000, step)
        h5.flush()
        file.commit()
        h5["never"] = 1
        file.abandon()
        h5.close()
        file.close()
    with h5py.File(path) as h5:
        assert sorted(h5) == ["x", "y0", "y1", "y2"]
        assert (h5["y2"][:] == 2).all()


def test_what_is_appended_takes_no_memory(path):
    import tracemalloc

    block = bytes(1 << 20)
    file = JournaledFile(path)
    tracemalloc.start()
    for index in range(64):
        write(file, len(CONTENT) + index * len(block), block)
    write(file, 50, b"changed")
    file.commit()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    file.close()
    assert os.path.getsize(path) == len(CONTENT) + 64 * len(block)
    assert peak < 4 << 20
