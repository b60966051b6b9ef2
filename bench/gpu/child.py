"""A stage in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_child(name: str, folder: Path, device: str, quick: bool, seconds: float, videos: Sequence[Path]) -> None:
    """Run a stage in a process of its own. Raises RuntimeError where it does not end well and in time."""
    command = [sys.executable, "-m", "bench.gpu", "--stage", name, "--folder", str(folder), "--device", device,
               "--seconds", str(seconds), *(["--quick"] if quick else []), *map(str, videos)]
    with open(folder / f"{name}.log", "w") as log:
        # stages look at the clock themselves; this is for one that hangs
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait(seconds + 15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise RuntimeError(f"took longer than {seconds:.0f} seconds") from None
    if code:
        lines = [line.strip() for line in (folder / f"{name}.log").read_text(errors="replace").splitlines()]
        raise RuntimeError(f"ended with exit code {code}: {next(filter(None, reversed(lines)), '')[:160]}")
