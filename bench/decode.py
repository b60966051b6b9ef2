"""Decoding and resizing to 224 x 224, frames per second: streamfeat's decoders against OpenCV, decord and torchcodec.

streamfeat gives normalised float32 frames, exactly resized; the peers give 224 x 224 bytes, which is less work. One
video at a time with as many threads as the machine has cores, as each library does by default.

    python -m bench.decode [--quick] [--json FILE] [VIDEO ...]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import common

SIZE = 224
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: codec and container of the made videos
CODECS = {"h264": "mp4", "hevc": "mp4", "vp9": "webm", "mpeg4": "avi", "mjpeg": "avi"}
HEIGHTS = {240: (320, 240), 480: (856, 480), 1080: (1920, 1080)}


def _streamfeat(decoder: Any) -> Callable[[Path], int]:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

    recipe, device = Recipe(upscale_below=None), torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(path: Path) -> int:
        stream = decoder.open(Video(path.stem, path), recipe, device)
        try:
            return sum(len(frames) for frames in stream)
        finally:
            stream.close()

    return run


def _pyav() -> Callable[[Path], int]:
    from streamfeat.decode.pyav import PyAVDecoder

    return _streamfeat(PyAVDecoder(threads=CORES))


def _dali() -> Callable[[Path], int]:
    import torch

    from streamfeat.decode import dali

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = dali.unavailable(device)
    if reason:
        raise ImportError(reason)
    return _streamfeat(dali.DaliDecoder(device))


def _opencv() -> Callable[[Path], int]:
    import cv2

    def run(path: Path) -> int:
        capture, count = cv2.VideoCapture(str(path)), 0
        while True:
            read, frame = capture.read()
            if not read:
                return count
            cv2.cvtColor(cv2.resize(frame, (SIZE, SIZE)), cv2.COLOR_BGR2RGB)
            count += 1

    return run


def _decord() -> Callable[[Path], int]:
    import decord

    def run(path: Path) -> int:
        reader, count = decord.VideoReader(str(path), width=SIZE, height=SIZE, num_threads=0), 0
        for start in range(0, len(reader), 16):
            count += len(reader.get_batch(range(start, min(start + 16, len(reader)))).asnumpy())
        return count

    return run


def _torchcodec() -> Callable[[Path], int]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    def run(path: Path) -> int:
        resize = Resize((SIZE, SIZE))
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=0, transforms=[resize], seek_mode="approximate")
        count = 0
        for start in range(0, len(decoder), 16):
            count += len(decoder.get_frames_in_range(start, min(start + 16, len(decoder))).data)
        return count

    return run


def _torchcodec_cuda() -> Callable[[Path], int]:
    import torch
    from torch.nn.functional import interpolate
    from torchcodec.decoders import VideoDecoder

    if not torch.cuda.is_available():
        raise ImportError("no GPU here")

    def run(path: Path) -> int:
        decoder, count = VideoDecoder(str(path), device="cuda"), 0
        for start in range(0, len(decoder), 16):
            frames = decoder.get_frames_in_range(start, min(start + 16, len(decoder))).data
            count += len(interpolate(frames.float(), size=(SIZE, SIZE), mode="bilinear"))
        torch.cuda.synchronize()
        return count

    return run


def _pynvvideocodec() -> Callable[[Path], int]:
    import PyNvVideoCodec as nvc
    import torch
    from torch.nn.functional import interpolate

    if not torch.cuda.is_available():
        raise ImportError("no GPU here")

    def run(path: Path) -> int:
        decoder = nvc.SimpleDecoder(str(path), use_device_memory=True, output_color_type=nvc.OutputColorType.RGB)
        count = 0
        for start in range(0, len(decoder), 16):
            batch = decoder.get_batch_frames(min(16, len(decoder) - start))
            frames = torch.stack([torch.from_dlpack(frame) for frame in batch]).permute(0, 3, 1, 2)
            count += len(interpolate(frames.float(), size=(SIZE, SIZE), mode="bilinear"))
        torch.cuda.synchronize()
        return count

    return run


SIDES = {
    "streamfeat PyAV": _pyav, "streamfeat DALI": _dali, "OpenCV": _opencv, "decord": _decord,
    "torchcodec": _torchcodec, "torchcodec CUDA": _torchcodec_cuda, "PyNvVideoCodec": _pynvvideocodec,
}  # fmt: skip


def unavailable(name: str) -> str | None:
    """Why a side does not run here, None if it does."""
    try:
        SIDES[name]()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


def _child(name: str, path: Path, rounds: int) -> None:
    """Print frames and seconds of each of ``rounds`` passes of one side over one video."""
    run = SIDES[name]()
    passes = []
    for _ in range(rounds):
        started = time.perf_counter()
        frames = run(path)
        passes.append((frames, time.perf_counter() - started))
    print(json.dumps(passes))


def measure(path: Path, sides: list[str], rounds: int) -> dict[str, Any]:
    """Frames per second of each side on one video: the median of ``rounds`` passes.

    Each side has a process of its own: each brings its own FFmpeg, and one that crashes ends only itself.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    counts = dict.fromkeys(sides, 0)
    for name in sides:
        done = subprocess.run(
            [sys.executable, "-m", "bench.decode", "--side", name, "--rounds", str(rounds), str(path)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["crashed"])[-1]
            print(f"{path.name}: {name}: {why[:120]}", file=sys.stderr)
            continue
        passes = json.loads(done.stdout.splitlines()[-1])
        counts[name] = passes[0][0]
        rates[name] = [frames / seconds for frames, seconds in passes]
    result: dict[str, Any] = {"video": path.name, "frames": counts["streamfeat PyAV"]}
    for name in SIDES:
        if name in sides:
            result[name] = statistics.median(rates[name]) if rates[name] and counts[name] else None
            if result[name] and counts[name] != result["frames"]:
                result[f"{name} frames"] = counts[name]
    best_peer = max((result[name] or 0 for name in sides if not name.startswith("streamfeat")), default=0)
    ours = max(result[name] or 0 for name in sides if name.startswith("streamfeat"))
    result["ours over the fastest peer"] = ours / best_peer if best_peer else None
    return result


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("videos", nargs="*", type=Path, help="besides the made ones")
    parser.add_argument("--side", help=SUPPRESS)
    parser.add_argument("--rounds", type=int, help=SUPPRESS)
    options = parser.parse_args()
    if options.side:
        _child(options.side, options.videos[0], options.rounds)
        return
    from bench.media import surveillance_video

    sides = []
    for name in SIDES:
        reason = unavailable(name)
        if reason is None:
            sides.append(name)
        else:
            print(f"skipped: {name}: {reason}", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for height, size in HEIGHTS.items():
            for codec, container in CODECS.items():
                if options.quick and codec not in ("h264", "vp9") and height != 480:
                    continue
                frames = (100 if options.quick else 400) * 240 // max(240, height)
                path = Path(folder) / f"{codec}-{height}p.{container}"
                surveillance_video(path, codec=codec, size=size, frames=frames)
                results.append(measure(path, sides, 2 if options.quick else 5))
    results += [measure(path, sides, 2 if options.quick else 5) for path in options.videos]
    columns = ["video", "frames", *sides, "ours over the fastest peer"]
    print(common.table("decode + resize to 224 x 224, frames/s", [{c: r.get(c) for c in columns} for r in results]))
    for result in results:
        for name in sides:
            if f"{name} frames" in result:
                given = result[f"{name} frames"]
                print(f"  {result['video']}: {name} gave {given} frames instead of {result['frames']}")
    if options.json:
        common.save(options.json, "decode", results)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: list[dict[str, Any]]) -> None:
    common.bars(
        path, "decode + resize to 224 x 224", "frames/s",
        {result["video"]: {name: result.get(name) for name in SIDES} for result in results},
    )  # fmt: skip


if __name__ == "__main__":
    main()
