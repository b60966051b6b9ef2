"""Whole runs killed at random instants: nothing that was reported as done is ever lost.

``STREAMFEAT_KILLS=200 python -m pytest tests/test_kill_extract.py`` kills more often than the suite does.
"""

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np

import streamfeat

from .media import write_video

KILLS = int(os.environ.get("STREAMFEAT_KILLS", "15"))

# A process that has imported everything forks a run, kills it, and looks at what is left; then the next.
_KILLER = """
import os, random, select, signal, sys, time
import h5py, numpy
import streamfeat, streamfeat.pipeline
from streamfeat.progress import Quiet

videos, out, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
recipe = streamfeat.Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
random.seed(kills)

class Tell(Quiet):
    def __init__(self, pipe):
        self.pipe, self.told = pipe, 0
    def update(self, counters):
        if counters.done > self.told:
            self.told = counters.done
            os.write(self.pipe, f"{counters.done}\\n".encode())

before = 0
for number in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        streamfeat.extract(videos, out, recipe=recipe, model="vit_tiny", weights="random", reporter=Tell(writer))
        os._exit(0)
    os.close(writer)
    select.select([reader], [], [], 60)  # until the first video is reported (or the run is over)
    time.sleep(random.random() * 0.15)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        told = [int(line) for line in pipe.read().split()]
    reported = before + (told[-1] if told else 0)
    if number % 2:
        with h5py.File(out) as file:  # plain h5py, which knows nothing of journals, after streamfeat has looked
            pass
    with streamfeat.open(out) as store:
        assert len(store) >= reported, (len(store), reported)
        assert all(video.is_intact() for video in store.values())
        before = len(store)
    with h5py.File(out) as file:
        found = []
        file["videos"].visititems(lambda name, item: found.append(item[:]) if name.endswith("features") else None)
        assert len(found) == before and all(numpy.isfinite(features).all() for features in found)
    if before == len(os.listdir(videos)):
        os.unlink(out)
        before = 0
    print(number, reported, before, flush=True)
"""


def test_no_run_that_is_killed_loses_a_video(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out.h5"
    videos.mkdir()
    first = write_video(videos / "v000.mp4", 24, size=(48, 32))
    for index in range(1, 150):
        shutil.copy(first, videos / f"v{index:03}.mp4")
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(videos), str(out), str(KILLS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == KILLS
    assert sum(int(reported) > 0 for _, reported, _ in lines) > KILLS / 2  # most kills hit a run under way

    recipe = streamfeat.Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
    summary = streamfeat.extract(videos, out, recipe=recipe, model="vit_tiny", weights="random")
    assert summary.complete and not summary.failures
    with h5py.File(out) as file:
        expected = file["videos/v000/features"][:]
        assert expected.shape == (6, 3, 128)
        for name in file["videos"]:
            np.testing.assert_allclose(file[f"videos/{name}/features"][:], expected, rtol=0.02, atol=0.02)
