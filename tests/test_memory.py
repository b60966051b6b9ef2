"""A video ten times longer takes no more memory."""

import json
import subprocess
import sys

import numpy as np

from .media import write_video

_MEASURE = """
import json, resource, sys
import streamfeat
summary = streamfeat.extract(sys.argv[1], sys.argv[2], model="vit_tiny", weights="random", batch_size=2, lanes=1)
print(json.dumps([summary.frames, summary.clips, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def test_peak_memory_does_not_grow_with_length(tmp_path):
    def run(frames):
        still = np.zeros((240, 320, 3), np.uint8)
        video = write_video(tmp_path / f"{frames}.mp4", (still + index % 200 for index in range(frames)))
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(video), str(tmp_path / f"{frames}.h5")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    short_frames, short_clips, short = run(320)
    long_frames, long_clips, long = run(3200)
    assert (short_frames, long_frames) == (320, 3200) and long_clips == 10 * short_clips
    assert long < 1.05 * short
