"""Kills writers, again and again: run as ``python -m tests.kill_loop FOLDER KILLS SEED``, prints what it saw as JSON.

Forks its writers, so that each lives within milliseconds. Knows nothing of torch, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import h5py
import numpy as np

from streamfeat.store import FeatureStore, Header, StoreWriter, WriterThread, appending, writer

HEADER = Header({"name": "kill"}, {"size": "none"}, (3, 16), ("statistic", "channel"))
VIDEOS_PER_STORE = 60


def clips(name: str) -> int:
    return int(name[1:]) * 7 % 40


def features(name: str, version: int) -> np.ndarray:
    return np.full((clips(name), 3, 16), int(name[1:]) + version / 1024, np.float32)


def write(path: str, version: int, pipe: int) -> None:
    """Do what is missing, then do done videos again; say what is durable, one line for each."""
    appending.SPILL_BYTES, appending._CHUNK_BYTES = 4000, 1000
    writer.COMMIT_INTERVAL = random.choice((0, 0.005, 0.02))
    store = StoreWriter.open(path, HEADER)

    def say(finished: list[str], failed: list[str]) -> None:
        os.write(pipe, "".join(f"{name} {version}\n" for name in finished + failed).encode())

    thread = WriterThread(store, say)
    names = [f"v{index}" for index in range(VIDEOS_PER_STORE)]
    missing = [name for name in names if name not in store.videos]
    for name in missing + [name for name in names if name not in missing]:
        data = features(name, version)
        for start in range(0, len(data), 9):
            piece = data[start : start + 9]
            thread.rows(name, 0, piece, np.arange(start, start + len(piece)))
        thread.finish(name, 0, {"version": version})
        if int(name[1:]) % 5 == 0:
            thread.fail(f"f{name[1:]}", "decode", f"version {version}")
    thread.close()
    store.close()


def verify(path: str, said: dict[str, int], version: int) -> None:
    """Everything said to be done is there, whole, as it was or newer; for streamfeat and for plain h5py."""
    if not os.path.exists(path):
        assert not said, "the store is gone"
        return
    with FeatureStore(path) as store, h5py.File(path) as plain:
        present = {}
        for name, video in store.items():
            present[name] = video.attrs["version"]
            np.testing.assert_array_equal(plain[f"videos/{name}/features"][:], features(name, present[name]))
            assert video.is_intact() and len(video.start_frame) == clips(name)
        assert plain["videos"].keys() == present.keys()
        present |= {name: int(failure.error.split()[1]) for name, failure in store.failures.items()}
    for name, least in said.items():
        assert least <= present.get(name, -1) <= version, (name, least, present.get(name))
    said |= present


def main(folder: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    path, said, version = "", {}, 0
    ended = killed = lines = 0
    while killed < kills:
        if killed % 20 == 0 or ended:
            path, said, version, ended = os.path.join(folder, f"{killed}-{version}.h5"), {}, 0, 0
        version += 1
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                write(path, version, writing)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.close(writing)
        time.sleep(chance.uniform(0, 0.03) if chance.random() < 0.5 else chance.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        with os.fdopen(reading) as pipe:
            output = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert os.WEXITSTATUS(status) == 0, "the writer failed by itself"
            ended += 1
        lines += len(output)
        for line in output:
            name, done = line.split()
            said[name] = int(done)
        verify(path, said, version)
    print(json.dumps({"kills": killed, "said": lines}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
