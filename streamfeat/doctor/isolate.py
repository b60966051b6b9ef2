"""Runs probes in processes of their own, side by side, and outlives all that they may do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

#: seconds for all probes together; a first ``import torch`` from a cold disk takes a good part of it
LIMIT = 40.0
#: seconds; to read what a process has said already when the time is up
_GRACE = 0.2

# sys.path goes along, as it may have been changed since the interpreter started.
_CHILD = "import sys; sys.path[:] = sys.argv[3:]; from streamfeat.doctor import isolate; isolate.answer(*sys.argv[1:3])"


def ask(probes: Mapping[str, dict[str, Any]], limit: float = LIMIT) -> dict[str, dict[str, Any]]:
    """Facts of each probe; ``{"failed": reason}`` of one that raised, crashed, or gave no answer in time.

    Args:
        probes: name out of ``PROBES`` -> its arguments.
        limit: seconds, for all of them together.
    """
    deadline = time.monotonic() + limit
    started: dict[str, subprocess.Popen[str]] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        for name, arguments in probes.items():
            try:
                started[name] = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, name, json.dumps(arguments), *sys.path],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                    errors="replace",
                )
            except OSError as error:
                facts[name] = {"failed": f"no process could be started: {error.strerror}"}
        for name, process in started.items():
            facts[name] = _collect(process, deadline, limit)
    finally:
        for process in started.values():
            # not waited for: one that is stuck in the driver does not end
            process.kill()
    return facts


def answer(name: str, arguments: str) -> None:
    """In the child: run one probe, with its arguments as JSON, and print what it says as the last line."""
    from streamfeat.doctor.probes import PROBES

    try:
        facts = PROBES[name](**json.loads(arguments))
    except BaseException as error:
        lines = str(error).strip().splitlines()
        facts = {"failed": lines[0] if lines else type(error).__name__}
    print(f"\n{json.dumps(facts)}", flush=True)
    os._exit(0)  # libraries that crash or hang at the end have answered all the same


def _collect(process: subprocess.Popen[str], deadline: float, limit: float) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=max(_GRACE, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {limit:.0f} seconds"}
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": _end(process.returncode)}


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"crashed with {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed with signal {-code}"
