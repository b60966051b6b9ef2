"""The writer thread: order, bounds, errors, and nothing said to be done before it is."""

import threading
import time

import h5py
import numpy as np
import pytest

from streamfeat.store import FeatureStore, Header, StoreError, StoreWriter, WriterThread, writer
from streamfeat.store.journal import disk
from tests.disks import WatchedOS

HEADER = Header({}, {}, (8,), ("channel",))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.h5")


@pytest.fixture
def store(path):
    with StoreWriter.open(path, HEADER) as store:
        yield store


def rows(value, clips=2):
    return np.full((clips, 8), value, np.float32), np.arange(clips) * 16


def send(thread, name, *values, attempt=0):
    for value in values:
        thread.rows(name, attempt, *rows(value))
    thread.finish(name, attempt, {"frames": len(values)})


def test_interleaved_videos_arrive_whole(store, path):
    thread = WriterThread(store)
    for step in range(10):
        for name in "abc":
            thread.rows(name, 0, *rows(step + ord(name)))
    for name in "cab":
        thread.finish(name, 0, {"frames": 20})
    thread.finish("short", 0, {"frames": 3})
    thread.fail("bad", "decode", "is empty")
    thread.close()
    with FeatureStore(path) as stored:
        assert list(stored) == ["a", "b", "c", "short"] and set(stored.failures) == {"bad"}
        for name in "abc":
            expected = np.repeat(np.arange(10) + ord(name), 2)
            np.testing.assert_array_equal(stored[name].features[:, 0], expected)
            assert stored[name].frames == 20
        assert stored["short"].features.shape == (0, 8)


def test_done_is_said_only_of_what_plain_h5py_can_read(store, path):
    said = []

    def on_committed(finished, failed):
        with h5py.File(path) as h5:
            assert all((h5[f"videos/{name}/features"][:] == int(name)).all() for name in finished)
            assert all(h5[f"failures/{name}"].attrs["stage"] == "decode" for name in failed)
        said.extend(finished + failed)

    thread = WriterThread(store, on_committed)
    for index in range(50):
        send(thread, str(index), index, index)
        if index % 10 == 0:
            thread.fail(f"bad{index}", "decode", "no")
            time.sleep(0.01)
    thread.close()
    assert sorted(said) == sorted([*map(str, range(50)), *(f"bad{index}" for index in range(0, 50, 10))])


def test_an_idle_writer_commits_at_once(store):
    done = threading.Event()
    thread = WriterThread(store, lambda finished, failed: done.set())
    send(thread, "a", 1)
    assert done.wait(5), "the next video may be hours away"
    thread.close()


def test_a_busy_writer_commits_now_and_then(store, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_INTERVAL", 0.05)
    commits = []
    thread = WriterThread(store, lambda finished, failed: commits.append(len(finished)))
    started = time.monotonic()
    index = 0
    while time.monotonic() - started < 0.5:
        send(thread, f"v{index}", index)
        index += 1
    busy_commits = len(commits)
    thread.close()
    assert sum(commits) == index
    assert 3 <= busy_commits <= 40 < index


def test_attempts_do_not_mix(store, path):
    thread = WriterThread(store)
    thread.rows("a", 0, *rows(1))
    thread.rows("a", 1, *rows(2))  # the second decoder may be at work before the first is known to be lost
    thread.rows("a", 0, *rows(1))
    thread.discard("a", 0)
    thread.rows("a", 0, *rows(1))  # late, from a batch that was under way
    thread.finish("a", 0, {"frames": 99})
    thread.rows("a", 1, *rows(2))
    thread.finish("a", 1, {"frames": 4})
    thread.discard("never begun", 3)
    thread.rows("never begun", 3, *rows(1))
    thread.close()
    with FeatureStore(path) as stored:
        assert list(stored) == ["a"]
        assert stored["a"].frames == 4 and (stored["a"].features == 2).all() and stored["a"].clips == 4


def test_after_a_failure_nothing_more_comes_of_a_video(store, path):
    said = []
    thread = WriterThread(store, lambda finished, failed: said.append((finished, failed)))
    thread.rows("a", 0, *rows(1))
    thread.fail("a", "decode", "the first reason")
    thread.rows("a", 0, *rows(1))
    thread.finish("a", 0, {})
    thread.fail("a", "model", "the second")
    thread.close()
    with FeatureStore(path) as stored:
        assert list(stored) == [] and stored.failures["a"].error == "the first reason"
    assert [failed for _, failed in said] == [["a"]]


def test_features_that_cannot_be_stored_fail_their_video_only(store, path):
    thread = WriterThread(store)
    thread.rows("a", 0, *rows(1))
    thread.rows("a", 0, *rows(np.nan))
    thread.finish("a", 0, {})
    send(thread, "b", 1)
    thread.close()
    with FeatureStore(path) as stored:
        assert list(stored) == ["b"]
        assert stored.failures["a"].stage == "store" and "not finite" in stored.failures["a"].error


def test_unfinished_videos_are_dropped_at_close(store, path):
    thread = WriterThread(store)
    send(thread, "a", 1)
    thread.rows("b", 0, *rows(1))
    thread.close()
    store.close()
    with FeatureStore(path) as stored:
        assert list(stored) == ["a"]


def test_closing_without_commit(store, path):
    assert not store.videos
    thread = WriterThread(store)
    send(thread, "a", 1)
    while not store.videos:
        time.sleep(0.001)
    thread.close(commit=False)
    thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        thread.rows("b", 0, *rows(1))


class Stuck:
    """Makes the thread wait amid its work, and then go wrong if told so."""

    def __init__(self, monkeypatch, error=None):
        self.reached, self.go_on = threading.Event(), threading.Event()

        def wait(store):
            self.reached.set()
            assert self.go_on.wait(10)
            if error:
                raise error

        monkeypatch.setattr(StoreWriter, "commit", wait)


def blocked_producer(thread):
    """A producer that hands over more than the queue holds; says what became of it."""
    outcome = []

    def produce():
        try:
            for index in range(1000):
                thread.rows("b", 0, *rows(index))
                outcome[:] = [index]
        except BaseException as error:
            outcome[:] = [error]

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    return producer, outcome


def test_a_full_queue_makes_the_producer_wait(store, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_BYTES", 10 * (2 * 8 * 4 + 2 * 8))
    stuck = Stuck(monkeypatch)
    thread = WriterThread(store)
    send(thread, "a", 1)
    assert stuck.reached.wait(5)
    producer, outcome = blocked_producer(thread)
    producer.join(0.2)
    assert producer.is_alive() and outcome[0] <= 10
    stuck.go_on.set()
    producer.join(5)
    assert outcome == [999]
    thread.close()


def test_many_messages_without_features_wait_too(store, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_MESSAGES", 5)
    stuck = Stuck(monkeypatch)
    thread = WriterThread(store)
    send(thread, "a", 1)
    assert stuck.reached.wait(5)
    producer = threading.Thread(target=lambda: [thread.fail(f"f{index}", "x", "y") for index in range(9)], daemon=True)
    producer.start()
    producer.join(0.2)
    assert producer.is_alive()
    stuck.go_on.set()
    producer.join(5)
    assert not producer.is_alive()
    thread.close()


def test_a_message_larger_than_the_queue_passes(store, path, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_BYTES", 10)
    thread = WriterThread(store)
    send(thread, "a", 1, 2, 3)
    thread.close()
    with FeatureStore(path) as stored:
        assert stored["a"].clips == 6


def test_an_error_frees_a_blocked_producer_and_comes_again_at_close(store, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_BYTES", 10 * (2 * 8 * 4 + 2 * 8))
    stuck = Stuck(monkeypatch, StoreError("the disk is full"))
    thread = WriterThread(store)
    send(thread, "a", 1)
    assert stuck.reached.wait(5)
    producer, outcome = blocked_producer(thread)
    producer.join(0.1)
    assert producer.is_alive()
    stuck.go_on.set()
    producer.join(5)
    assert not producer.is_alive() and "the disk is full" in str(outcome[0])
    for _ in range(2):
        with pytest.raises(StoreError, match="the disk is full"):
            thread.finish("b", 0, {})
        with pytest.raises(StoreError, match="the disk is full"):
            thread.close()


def test_an_error_of_the_callback_ends_the_writer(store):
    def on_committed(finished, failed):
        raise ZeroDivisionError

    thread = WriterThread(store, on_committed)
    send(thread, "a", 1)
    with pytest.raises(ZeroDivisionError):
        thread.close()


def test_a_disk_that_fails_for_real(path, monkeypatch):
    """What was said to be done is there; nothing hangs; the error says what to do."""
    said = []
    store = StoreWriter.open(path, HEADER)
    thread = WriterThread(store, lambda finished, failed: said.extend(finished))
    full = False

    def refuse(call, arguments):
        if full and call == "pwrite":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", WatchedOS(refuse))
        with pytest.raises(StoreError, match=r"out\.h5: cannot be written \(No space left on device\)"):
            for index in range(100_000):
                full = full or len(said) > 5
                send(thread, f"v{index}", index)
        with pytest.raises(StoreError, match="No space left"):
            thread.close()
        store.close()
    with FeatureStore(path) as stored:
        assert set(stored) >= set(said) and len(said) > 5
        assert all(video.is_intact() for video in stored.values())


def test_memory_is_bounded_by_the_queue(store, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(writer, "QUEUE_BYTES", 2 << 20)
    thread = WriterThread(store)
    tracemalloc.start()
    for _ in range(200):
        thread.rows("long", 0, np.zeros((20_000, 8), np.float32), np.arange(20_000))  # 0.8 MB, 160 MB in all
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    thread.finish("long", 0, {})
    thread.close()
    assert peak < 24 << 20
