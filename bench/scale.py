"""How the cost of `extract` grows: with the number of videos, their length, resolution, overlap of clips, and lanes.

The model is vit_tiny with random weights, so that what is around the model shows. One quantity changes at a time;
each run is a process of its own, whose memory is watched from outside.

    python -m bench.scale [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from bench import common, processes

BASE = {"videos": 4, "frames": 160, "height": 240, "clip_stride": 16, "lanes": 2}
STEPS: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "videos": ({"frames": 32}, (1, 10, 100, 1000)),
    "frames": ({"videos": 1}, (160, 1600, 16000)),
    "height": ({"frames": 160}, (240, 480, 1080)),
    "clip_stride": ({}, (16, 8, 4)),
    "lanes": ({}, (1, 2, 4)),
}
QUICK: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "videos": ({"frames": 64}, (1, 20)),
    "frames": ({"videos": 1}, (320, 3200)),
    "height": ({"frames": 80}, (240, 480)),
    "clip_stride": ({}, (16, 4)),
    "lanes": ({}, (1, 2)),
}
WIDTHS = {240: 320, 480: 856, 1080: 1920}
#: frames that are drawn; longer videos repeat them
_DRAWN = 80


def _child(folder: str, clip_stride: int, lanes: int, result: str) -> None:
    import streamfeat

    summary = streamfeat.extract(
        folder, Path(result).with_suffix(".h5"), model="vit_tiny", weights="random", device="cpu", lanes=lanes,
        recipe=streamfeat.Recipe(clip_stride=clip_stride), overwrite=True,
    )  # fmt: skip
    found = {"seconds": summary.seconds, "clips": summary.clips, "frames": summary.frames, "failed": summary.failures}
    Path(result).write_text(json.dumps(found))


def run(case: dict[str, int], rounds: int) -> dict[str, Any]:
    """`extract` of ``case["videos"]`` copies of one made video: medians over ``rounds``."""
    from bench.media import repeat, surveillance_video

    with tempfile.TemporaryDirectory() as folder:
        videos, result = Path(folder) / "videos", Path(folder) / "result.json"
        videos.mkdir()
        times = max(1, case["frames"] // _DRAWN)
        size = (WIDTHS[case["height"]], case["height"])
        drawn = surveillance_video(
            Path(folder) / "drawn.mp4", codec="h264", size=size, frames=min(_DRAWN, case["frames"])
        )
        first = repeat(drawn, videos / "video0000.mp4", times)
        for index in range(1, case["videos"]):
            os.link(first, videos / f"video{index:04}.mp4")
        found, peaks = [], []
        for _ in range(rounds):
            ended = processes.run(
                "bench.scale", "--case", str(videos), str(case["clip_stride"]), str(case["lanes"]), str(result)
            )
            if ended.returncode:
                raise SystemExit(f"bench.scale: {case}: {ended.last_words}")
            found.append(json.loads(result.read_text()))
            peaks.append(ended.peak_bytes)
    expected = case["videos"] * times * min(_DRAWN, case["frames"])
    if found[0]["failed"] or found[0]["frames"] != expected:
        raise SystemExit(f"bench.scale: {case}: {found[0]['frames']} frames instead of {expected}")
    seconds = statistics.median(one["seconds"] for one in found)
    return {
        **case, "seconds": seconds, "clips/s": found[0]["clips"] / seconds, "frames/s": expected / seconds,
        "ms/video": 1000 * seconds / case["videos"],
        "peak MB": statistics.median(peaks) / 2**20 if all(peaks) else None,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", action="append", choices=STEPS, help="quantities (default: all)")
    parser.add_argument("--case", nargs=4, help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        _child(options.case[0], int(options.case[1]), int(options.case[2]), options.case[3])
        return
    results = {}
    for quantity, (base, values) in (QUICK if options.quick else STEPS).items():
        if options.only and quantity not in options.only:
            continue
        rounds = 1 if options.quick else 3
        # the largest cases last long enough to be measured once
        results[quantity] = [
            run(BASE | base | {quantity: value}, 1 if value >= 1000 and quantity != "height" else rounds)
            for value in values
        ]
        columns = [quantity, "seconds", "clips/s", "frames/s", "ms/video", "peak MB"]
        print(common.table(f"more {quantity}", [{c: row[c] for c in columns} for row in results[quantity]]) + "\n")
        sys.stdout.flush()
    if options.json:
        common.save(options.json, "scale", results, quick=options.quick)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    common.bars(
        path, "streamfeat extract, vit_tiny", "frames/s",
        {f"more {name}": {str(row[name]): row["frames/s"] for row in rows} for name, rows in results.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
