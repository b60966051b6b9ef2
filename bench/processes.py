"""Sides of a comparison as processes: a peer that crashes ends only itself, and its memory can be told apart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

#: seconds between two looks at the memory of a process tree; the look itself takes a few milliseconds
_LOOK_EVERY = 0.2


class Crashed(Exception):
    """A side ended without an answer. The text is the last line that it left, or how it died."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a process ended."""

    returncode: int
    #: last line on stderr, for people
    last_words: str
    #: most memory of the process and all below it at one moment, bytes; None where /proc does not tell
    peak_bytes: int | None


def run(module: str, *arguments: str) -> Finished:
    """Run ``python -m module`` to its end, and watch the memory of its process tree."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    words: list[str] = []
    listener = threading.Thread(target=lambda: words.extend(child.stderr))
    listener.start()
    peak = 0
    while child.poll() is None:
        peak = max(peak, tree_bytes(child.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_LOOK_EVERY)
    listener.join()
    return Finished(child.returncode, _last_words(words, child.returncode), peak or None)


def tree_bytes(pid: int) -> int:
    """Memory of a process and all below it: proportional set size, so that shared pages count once. 0: unknown."""
    total, ahead = 0, [pid]
    while ahead:
        process = Path("/proc") / str(ahead.pop())
        with contextlib.suppress(OSError, ValueError):
            for task in (process / "task").iterdir():
                ahead += (int(child) for child in (task / "children").read_text().split())
        with contextlib.suppress(OSError):
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total


class Worker:
    """A process that answers one JSON line to each: started when first asked, and anew after a crash.

    Args:
        module: run as ``python -m module *arguments``; calls ``serve`` there.
        patience: seconds after which no answer is a crash.
    """

    def __init__(self, module: str, *arguments: str, patience: float = 300) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._patience = patience
        self._child: subprocess.Popen[str] | None = None
        self._words: list[str] = []

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises Crashed."""
        if self._child is None:
            self._start()
        child = self._child
        impatience = threading.Timer(self._patience, child.kill)
        impatience.start()
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            # libraries print what they like, so only a line that is an answer counts
            answer = next((line for line in child.stdout if line.startswith('{"answer":')), None)
        except BrokenPipeError:
            answer = None
        finally:
            impatience.cancel()
        if answer is None:
            code = self._end()
            raise Crashed(_last_words(self._words, code))
        return json.loads(answer)["answer"]

    def close(self) -> None:
        if self._child is not None:
            self._end()

    def _start(self) -> None:
        self._words = words = []
        self._child = child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._listener = threading.Thread(target=lambda: words.extend(child.stderr), daemon=True)
        self._listener.start()

    def _end(self) -> int:
        child, self._child = self._child, None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            code = child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        self._listener.join(1)
        child.stdout.close()
        return code


def serve(answer: Any) -> None:
    """The other end of a Worker: ``answer(question)`` for each line on stdin."""
    for line in sys.stdin:
        print(json.dumps({"answer": answer(json.loads(line))}), flush=True)


def _last_words(lines: list[str], code: int) -> str:
    said = [line.strip() for line in lines if line.strip()]
    if code < 0:
        return f"crashed with signal {-code}"
    return said[-1][:160] if said else f"ended with exit code {code}"
