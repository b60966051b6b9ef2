"""Ctrl-C: exit code 130 and one line, whichever command it is."""

import os
import signal
import subprocess
import sys
import time

import h5py
import pytest

from streamfeat.cli import COMMANDS
from tests.feature_stores import write_store


def start(arguments):
    """A Python that hears Ctrl-C: what a shell starts in the background, a test suite too, ignores it."""
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_verify_at_work(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 40})
    with h5py.File(store, "r+") as file:
        del file["videos/a/features"]
        # holes, which take minutes to read
        file.create_dataset("videos/a/features", shape=(10**9, 3, 8), dtype="f4", chunks=(1 << 16, 3, 8))
    process = start(["-m", "streamfeat", "verify", store])
    folder = f"/proc/{process.pid}/fd"
    while str(store) not in [os.path.realpath(f"{folder}/{number}") for number in os.listdir(folder)]:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=30)
    assert (process.returncode, output, said.strip()) == (130, "", "streamfeat: interrupted")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command(command, tmp_path):
    """Interrupted amid whatever it does when it has understood its arguments."""
    code = (
        "import sys, time, click, streamfeat.cli as cli\n"
        "def work(*args, **kwargs): print('at work', flush=True); time.sleep(60)\n"
        f"found = cli.main.get_command(None, {command!r})\n"
        "found.callback, found.params = work, []\n"
        f"cli.main([{command!r}])\n"
    )
    process = start(["-c", code])
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said.strip() == "streamfeat: interrupted"
