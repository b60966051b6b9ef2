"""How the cost of `extract` grows: with the number of videos, their length, resolution, overlap of clips, and lanes.

The model is vit_tiny with random weights, so that what is around the model shows. One quantity changes at a time;
each run is a process of its own, whose peak memory is read at its end.

    python -m bench.scale [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from bench import common

BASE = {"videos": 4, "frames": 320, "height": 240, "clip_stride": 16, "lanes": 2}
STEPS = {
    "videos": (1, 10, 100, 1000),
    "frames": (320, 3200, 32000),
    "height": (240, 480, 1080),
    "clip_stride": (16, 8, 4),
    "lanes": (1, 2, 4),
}
QUICK = {"videos": (1, 20), "frames": (320, 3200), "height": (240, 480), "clip_stride": (16, 4), "lanes": (1, 2)}
WIDTHS = {240: 320, 480: 856, 1080: 1920}


def _child(folder: str, clip_stride: int, lanes: int) -> None:
    import streamfeat

    summary = streamfeat.extract(
        folder, Path(folder) / "out.h5", model="vit_tiny", weights="random", lanes=lanes,
        recipe=streamfeat.Recipe(clip_stride=clip_stride),
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": summary.seconds, "clips": summary.clips, "frames": summary.frames, "peak_mb": peak}))


def run(case: dict[str, int]) -> dict[str, Any]:
    """One `extract` of ``case["videos"]`` copies of one made video."""
    from bench.media import surveillance_video

    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "video0000.mp4"
        size = (WIDTHS[case["height"]], case["height"])
        surveillance_video(first, codec="h264", size=size, frames=case["frames"])
        for index in range(1, case["videos"]):
            os.link(first, Path(folder) / f"video{index:04}.mp4")
        done = subprocess.run(
            [sys.executable, "-m", "bench.scale", "--case", folder, str(case["clip_stride"]), str(case["lanes"])],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    found = json.loads(done.stdout)
    return {
        **case, "clips/s": found["clips"] / found["seconds"], "frames/s": found["frames"] / found["seconds"],
        "ms/video": 1000 * found["seconds"] / case["videos"], "peak MB": found["peak_mb"],
    }  # fmt: skip


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--case", nargs=3, help=SUPPRESS)
    options = parser.parse_args()
    if options.case:
        _child(options.case[0], int(options.case[1]), int(options.case[2]))
        return
    results = {}
    for quantity, values in (QUICK if options.quick else STEPS).items():
        results[quantity] = [run(BASE | {quantity: value}) for value in values]
        columns = [quantity, "clips/s", "frames/s", "ms/video", "peak MB"]
        print(common.table(f"more {quantity}", [{c: row[c] for c in columns} for row in results[quantity]]) + "\n")
    if options.json:
        common.save(options.json, "scale", results)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    common.bars(
        path, "streamfeat extract, vit_tiny", "frames/s",
        {f"more {name}": {str(row[name]): row["frames/s"] for row in rows} for name, rows in results.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
