"""What a run tells while it goes on: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Protocol, TextIO

from tqdm import tqdm


@dataclasses.dataclass
class Counters:
    """How far a run has come. Videos count once they are safe in the store."""

    videos_total: int = 0
    bytes_total: int = 0
    done: int = 0
    failed: int = 0
    clips: int = 0
    frames: int = 0
    #: of the sources' bytes, how many are behind us: what time left is judged by
    bytes_done: float = 0.0

    def left(self, seconds: float) -> float | None:
        """Seconds left, from the share of the input's bytes that ``seconds`` took; None: too early to tell."""
        if not self.bytes_done or not self.bytes_total:
            return None
        return seconds * (self.bytes_total - self.bytes_done) / self.bytes_done


class Reporter(Protocol):
    """Receives what happens. Called from one thread."""

    def note(self, text: str) -> None:
        """One line that the user should see, now."""

    def update(self, counters: Counters) -> None:
        """The counters have changed."""

    def close(self) -> None:
        """The run is over."""


class Quiet:
    """Tells nothing."""

    def note(self, text: str) -> None:
        pass

    def update(self, counters: Counters) -> None:
        pass

    def close(self) -> None:
        pass


def describe(counters: Counters, seconds: float) -> str:
    """The state in one line: clips, frames per second, failures."""
    parts = [f"{counters.clips} clips"]
    if seconds > 0:
        parts.append(f"{counters.frames / seconds:.0f} frames/s")
    if counters.failed:
        parts.append(f"{counters.failed} failed")
    return ", ".join(parts)


class Lines:
    """A plain line every few seconds, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._started = self._last = time.monotonic()

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def update(self, counters: Counters) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        seconds = now - self._started
        left = counters.left(seconds)
        ended = counters.done + counters.failed
        self.note(
            f"{ended}/{counters.videos_total} videos, {describe(counters, seconds)}"
            + (f", {_clock(left)} left" if left is not None else "")
        )

    def close(self) -> None:
        pass


class Bar:
    """A progress bar over videos, for terminals. It appears with the first update."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._started, self._drawn = time.monotonic(), 0.0

    def note(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def update(self, counters: Counters) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=counters.videos_total, file=self._stream, dynamic_ncols=True, leave=False,
                bar_format="{n_fmt}/{total_fmt} videos |{bar}| {desc}",
            )  # fmt: skip
        seconds = time.monotonic() - self._started
        self._bar.n = counters.done + counters.failed
        left = counters.left(seconds)
        text = describe(counters, seconds) + (f", {_clock(left)} left" if left is not None else "")
        self._bar.set_description_str(text, refresh=False)
        now = time.monotonic()
        if now - self._drawn > 0.1:
            self._drawn = now
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def choose(quiet: bool) -> Reporter:
    """The reporter that fits where standard error goes."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
