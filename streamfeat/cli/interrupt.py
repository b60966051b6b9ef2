"""Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import click

T = TypeVar("T")


def end_if_hung(code: int) -> None:
    """End the process with ``code``, at once, where a decoder hangs: an orderly end would wait for it for ever."""
    dali = sys.modules.get("streamfeat.decode.dali_stream")
    if dali is not None and dali.hangs():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # who read it may have left
                stream.flush()
        os._exit(code)


def run_interruptibly(work: Callable[[threading.Event], T]) -> tuple[T, int | None]:
    """Run ``work(stop)`` in a thread, so that signals are answered however long one of its steps takes.

    Returns what ``work`` returned and the number of the signal that stopped it, if one did; raises what it
    raised. A second signal exits at once with 128 + its number: the store on disk is whole at any instant.
    """
    stop = threading.Event()
    received: list[int] = []
    outcome: list[T] = []
    error: list[BaseException] = []

    def on_signal(number: int, frame: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        click.echo("\nstopping: finishing what is complete (once more to stop at once)", err=True)
        stop.set()

    def target() -> None:
        try:
            outcome.append(work(stop))
        except BaseException as caught:
            error.append(caught)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    worker = threading.Thread(target=target, name="extract", daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(0.2)  # with a timeout, or Windows would not deliver signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if error:
        raise error[0]
    return outcome[0], (received[0] if received else None)
