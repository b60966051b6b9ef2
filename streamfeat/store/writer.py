"""The writer thread: what the model made goes to the store, while the next batch is computed."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .appending import StoreWriter, VideoAppender
from .errors import BadFeatures

#: bytes of features that may wait to be written; a producer that is ahead by more has to wait itself
QUEUE_BYTES = 64 * 1024 * 1024
#: and as many messages without features
QUEUE_MESSAGES = 1024
#: seconds between commits while there is always more to do
COMMIT_INTERVAL = 0.5
_NEVER = float("inf")


@dataclasses.dataclass(frozen=True)
class _Rows:
    name: str
    attempt: int
    features: np.ndarray
    start_frame: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.start_frame.nbytes


@dataclasses.dataclass(frozen=True)
class _Finish:
    name: str
    attempt: int
    attrs: Mapping[str, Any]
    nbytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Fail:
    name: str
    stage: str
    error: str
    nbytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Discard:
    name: str
    attempt: int
    nbytes: int = 0


class WriterThread:
    """Writes to ``store`` in a thread of its own; the store is its alone until ``close``.

    A video is known by its name and the number of the attempt at it, so that a video that is done again by
    another decoder does not mix with what is left of the first attempt. Messages wait in a queue of bounded size;
    a full one makes the producer wait. Arrays handed over must not be changed afterwards.

    Finished videos and failures are committed as soon as nothing else waits, at most COMMIT_INTERVAL seconds
    apart while something does. ``on_committed(finished, failed)`` is called in the thread with the names of those
    that have just become durable, never before.

    An error in the thread (a full disk, an exception of ``on_committed``) ends it; every later call raises it.
    """

    def __init__(
        self, store: StoreWriter, on_committed: Callable[[list[str], list[str]], None] | None = None
    ) -> None:
        self._store = store
        self._on_committed = on_committed
        self._queue: collections.deque[_Rows | _Finish | _Fail | _Discard] = collections.deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._dropping = False
        self._error: BaseException | None = None
        self._appenders: dict[tuple[str, int], VideoAppender] = {}
        # The first attempt at a video that still counts: its messages may be on the way while it is given up.
        self._first_valid: dict[str, float] = {}
        self._finished: list[str] = []
        self._failed: list[str] = []
        self._last_commit = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def rows(self, name: str, attempt: int, features: np.ndarray, start_frame: np.ndarray) -> None:
        """More clips of a video: ``features`` ``(n, *row_shape)``, ``start_frame`` ``(n,)``.

        Features that cannot be stored (not finite in the store's dtype) make the video fail at stage "store".
        """
        self._put(_Rows(name, attempt, np.asarray(features), np.asarray(start_frame)))

    def finish(self, name: str, attempt: int, attrs: Mapping[str, Any]) -> None:
        """The video is complete, with however many rows came (none: an empty feature)."""
        self._put(_Finish(name, attempt, attrs))

    def fail(self, name: str, stage: str, error: str) -> None:
        """The video failed for good: every attempt at it is dropped, also what is still to come of one."""
        self._put(_Fail(name, stage, error))

    def discard(self, name: str, attempt: int) -> None:
        """Drop this attempt at the video and those before it; a later one may follow."""
        self._put(_Discard(name, attempt))

    def close(self, commit: bool = True) -> None:
        """Write and commit what was handed over, or with ``commit=False`` drop what is not committed yet.

        Videos that were not finished are dropped. Afterwards the store is the caller's again, to close or abort.
        """
        with self._changed:
            self._closing = True
            self._dropping = self._dropping or not commit
            self._changed.notify_all()
        self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _put(self, message: _Rows | _Finish | _Fail | _Discard) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._closing or self._has_room(message))
            self._raise_error()
            if self._closing:
                raise RuntimeError("the store writer was closed")
            self._queue.append(message)
            self._queued_bytes += message.nbytes
            self._changed.notify_all()

    def _has_room(self, message: _Rows | _Finish | _Fail | _Discard) -> bool:
        # One message may be larger than the queue: it goes in when it is alone.
        fits = self._queued_bytes + message.nbytes <= QUEUE_BYTES and len(self._queue) < QUEUE_MESSAGES
        return fits or not self._queue

    # --- in the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                self._handle(message)
                del message  # its features are in the store now
                if time.monotonic() - self._last_commit >= COMMIT_INTERVAL:
                    self._commit()
            if not self._dropping:
                self._commit()
            for appender in self._appenders.values():
                appender.abandon()
        except BaseException as error:  # handed to the producer, which may be waiting
            with self._changed:
                self._error = error
                self._queue.clear()
                self._changed.notify_all()

    def _next(self) -> _Rows | _Finish | _Fail | _Discard | None:
        """The next message; None when there will be none. Commits before it would wait for one."""
        with self._changed:
            idle = not self._queue and not self._closing
        if idle:
            self._commit()
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._dropping or not self._queue:
                return None
            message = self._queue.popleft()
            self._queued_bytes -= message.nbytes
            self._changed.notify_all()
            return message

    def _handle(self, message: _Rows | _Finish | _Fail | _Discard) -> None:
        name = message.name
        if isinstance(message, _Fail):
            self._fail(name, message.stage, message.error)
        elif isinstance(message, _Discard):
            self._drop(name, message.attempt)
        elif message.attempt >= self._first_valid.get(name, message.attempt):
            appender = self._appenders.get((name, message.attempt))
            if appender is None:
                appender = self._appenders[name, message.attempt] = self._store.begin(name)
            if isinstance(message, _Rows):
                try:
                    appender.append(message.features, message.start_frame)
                except BadFeatures as error:
                    self._fail(name, "store", str(error))
            else:
                appender.finish(message.attrs)
                del self._appenders[name, message.attempt]
                self._drop(name, message.attempt)
                self._finished.append(name)

    def _fail(self, name: str, stage: str, error: str) -> None:
        if self._first_valid.get(name) == _NEVER:
            return  # the first reason counts
        self._drop(name, _NEVER)
        self._store.fail(name, stage, error)
        self._failed.append(name)

    def _drop(self, name: str, attempt: float) -> None:
        for key in [key for key in self._appenders if key[0] == name and key[1] <= attempt]:
            self._appenders.pop(key).abandon()
        self._first_valid[name] = max(self._first_valid.get(name, 0), attempt + 1)

    def _commit(self) -> None:
        if not self._finished and not self._failed:
            return
        self._store.commit()
        self._last_commit = time.monotonic()
        finished, self._finished = self._finished, []
        failed, self._failed = self._failed, []
        if self._on_committed is not None:
            self._on_committed(finished, failed)
