"""Whole runs, from video files to features on disk: streamfeat against the ways it replaces.

Every side takes the same videos and the same weights, in a process of its own, one after another; its clock runs
from the first video opened to the last feature on disk, without starting Python or loading weights. Its features are
compared with those of the usual script in fp32 before its time counts.

    python -m bench.extract [--quick] [--json FILE] [--model vit_b] [VIDEO ...]
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import common

#: below this a side computes something else, and its time means nothing
LOWEST_COSINE = 0.999
CLIP_FRAMES = 16


class Unavailable(Exception):
    """A peer is not installed here."""


# the sides -----------------------------------------------------------------------------------------------------------
# each: (videos, weights, out folder, options) -> (features per video, seconds, note)

Features = dict[str, np.ndarray]
Outcome = tuple[Features, float, dict[str, Any]]


def streamfeat_side(videos: list[Path], weights: Path, out: Path, precision: str) -> Outcome:
    """`streamfeat extract`, and, before and after it, its encoder alone on as many ready-made clips."""
    import torch

    import streamfeat
    from streamfeat.model import load_encoder

    encoder = load_encoder(str(weights), precision=precision)
    size = encoder.batch_size
    clips = torch.randn(size, 3, CLIP_FRAMES, 224, 224).to(encoder.input_dtype)
    encoder.encode(clips)

    def alone(batches: int) -> float:
        started = time.perf_counter()
        for _ in range(batches):
            encoder.encode(clips)
        return (time.perf_counter() - started) / (batches * size)

    before = alone(max(2, 8 // size))
    summary = streamfeat.extract(
        [str(video) for video in videos], out / "out.h5", weights=str(weights), precision=precision
    )
    after = alone(max(2, 8 // size))
    with streamfeat.open(out / "out.h5") as store:
        features = {name: store[name].features for name in store}
    share = (before + after) / 2 * summary.clips / summary.seconds
    return features, summary.seconds, {"share_of_encoder": share}


def published_side(videos: list[Path], weights: Path, out: Path) -> Outcome:
    """The published way: all frames to JPEG, lists as text, a DataLoader, batches of two, a file a clip, merged.

    Rebuilt from the description of Fed_WSVAD's Backbone; the exchange of red and blue is left out on both ends, so
    that all sides compute the same. fp32, attention written out, as published.
    """
    import cv2
    import torch

    from bench.published import PublishedModel

    model = PublishedModel(weights)
    model(torch.zeros(1, 3, CLIP_FRAMES, 224, 224))
    started = time.perf_counter()
    lines = []
    for video in videos:
        folder = out / "Rgb_Fig" / video.stem
        folder.mkdir(parents=True)
        capture, count = cv2.VideoCapture(str(video)), 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            count += 1
            cv2.imwrite(str(folder / f"img_{count:05}.jpg"), frame)
        for start in range(0, count - CLIP_FRAMES + 1, CLIP_FRAMES):
            lines.append(f"{folder} {start + 1}")
    (out / "list.txt").write_text("\n".join(lines))

    class Clips(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.lines = (out / "list.txt").read_text().splitlines()

        def __len__(self) -> int:
            return len(self.lines)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            folder, first = self.lines[index].rsplit(" ", 1)
            frames = []
            for number in range(int(first), int(first) + CLIP_FRAMES):
                image = cv2.imread(f"{folder}/img_{number:05}.jpg")[:, :, [2, 1, 0]]
                height, width = image.shape[:2]
                if min(height, width) < 226:
                    scale = 226.0 / min(height, width)
                    image = cv2.resize(image, dsize=(0, 0), fx=scale, fy=scale)
                frames.append(cv2.resize((image / 255.0) * 2 - 1, (224, 224)))
            return torch.from_numpy(np.asarray(frames, dtype=np.float32)).permute(3, 0, 1, 2), index

    (out / "clips").mkdir()
    loader = torch.utils.data.DataLoader(Clips(), batch_size=2, num_workers=0)
    for clips, indices in loader:
        for index, feature in zip(indices, model(clips), strict=True):
            np.save(out / "clips" / f"{int(index):06}.npy", feature.numpy())
    features: dict[str, list[np.ndarray]] = {video.stem: [] for video in videos}
    for index, line in enumerate(lines):
        features[Path(line.rsplit(" ", 1)[0]).name].append(np.load(out / "clips" / f"{index:06}.npy"))
    merged = {}
    for name, rows in features.items():
        merged[name] = np.stack(rows)
        np.save(out / f"{name}.npy", merged[name])
    return merged, time.perf_counter() - started, {}


def _reader(kind: str) -> Callable[[Path], tuple[int, Callable[[int, int], np.ndarray]]]:
    """Opens a video with decord or torchcodec: (number of frames, start and stop -> uint8 (n, h, w, 3))."""
    if kind == "decord":
        try:
            import decord
        except ImportError as error:
            raise Unavailable("decord is not installed") from error

        def open_decord(video: Path) -> tuple[int, Callable[[int, int], np.ndarray]]:
            reader = decord.VideoReader(str(video), num_threads=0)
            return len(reader), lambda start, stop: reader.get_batch(range(start, stop)).asnumpy()

        return open_decord
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable("torchcodec is not installed, or finds no FFmpeg") from error

    def open_torchcodec(video: Path) -> tuple[int, Callable[[int, int], np.ndarray]]:
        decoder = VideoDecoder(str(video), dimension_order="NHWC")
        return len(decoder), lambda start, stop: decoder.get_frames_in_range(start, stop).data.numpy()

    return open_torchcodec


def _prepare(frames: np.ndarray) -> Any:
    """Frames to a normalised clip (3, T, 224, 224), the short way."""
    import torch

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    height, width = pixels.shape[-2:]
    if min(height, width) < 226:
        scale = 226.0 / min(height, width)
        pixels = torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear").round()
    pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False)
    return (pixels / 127.5 - 1).transpose(0, 1)


def usual_side(videos: list[Path], weights: Path, out: Path, reader: str) -> Outcome:
    """The usual script: one clip at a time, fp32, transformers, one `.npy` a video."""
    import torch

    from bench.published import transformers_model

    model, open_video = transformers_model(weights, torch.float32), _reader(reader)
    model(torch.zeros(1, 3, CLIP_FRAMES, 224, 224))
    started, features = time.perf_counter(), {}
    for video in videos:
        count, read = open_video(video)
        rows = [
            model(_prepare(read(start, start + CLIP_FRAMES))[None])[0]
            for start in range(0, count - CLIP_FRAMES + 1, CLIP_FRAMES)
        ]
        features[video.stem] = torch.stack(rows).numpy()
        np.save(out / f"{video.stem}.npy", features[video.stem])
    return features, time.perf_counter() - started, {}


def usual_well_side(videos: list[Path], weights: Path, out: Path, reader: str) -> Outcome:
    """The usual script, well written: batches, SDPA, bf16, decode in a worker process that runs ahead."""
    import torch

    from bench.published import transformers_model

    _reader(reader)
    model = transformers_model(weights, torch.bfloat16)
    model(torch.zeros(4, 3, CLIP_FRAMES, 224, 224, dtype=torch.bfloat16))

    class Clips(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            torch.set_num_threads(1)
            open_video = _reader(reader)
            for video in videos:
                count, read = open_video(video)
                for start in range(0, count - CLIP_FRAMES + 1, CLIP_FRAMES):
                    yield video.stem, _prepare(read(start, start + CLIP_FRAMES)).to(torch.bfloat16)

    started = time.perf_counter()
    rows: dict[str, list[Any]] = {video.stem: [] for video in videos}
    for names, clips in torch.utils.data.DataLoader(Clips(), batch_size=4, num_workers=1, prefetch_factor=2):
        for name, row in zip(names, model(clips), strict=True):
            rows[name].append(row)
    features = {name: torch.stack(found).numpy() for name, found in rows.items()}
    for name, array in features.items():
        np.save(out / f"{name}.npy", array)
    return features, time.perf_counter() - started, {}


SIDES: dict[str, Callable[[list[Path], Path, Path], Outcome]] = {
    "usual script, decord, fp32": lambda v, w, o: usual_side(v, w, o, "decord"),
    "usual script, torchcodec, fp32": lambda v, w, o: usual_side(v, w, o, "torchcodec"),
    "usual script well written, decord, bf16": lambda v, w, o: usual_well_side(v, w, o, "decord"),
    "usual script well written, torchcodec, bf16": lambda v, w, o: usual_well_side(v, w, o, "torchcodec"),
    "published way, fp32": published_side,
    "streamfeat, fp32": lambda v, w, o: streamfeat_side(v, w, o, "fp32"),
    "streamfeat, bf16": lambda v, w, o: streamfeat_side(v, w, o, "bf16"),
}
REFERENCE = "usual script, decord, fp32"


# running them --------------------------------------------------------------------------------------------------------


def _child(side: str, weights: Path, out: Path, videos: list[Path]) -> None:
    """Run one side in this process and leave what it gave in ``out``."""
    result: dict[str, Any] = {"side": side}
    try:
        features, seconds, notes = SIDES[side](videos, weights, out)
    except (Unavailable, ImportError) as error:
        result["skipped"] = str(error)
    else:
        np.savez(out / "features.npz", **features)
        result |= {"seconds": seconds, "clips": sum(map(len, features.values())), **notes}
        result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        result["disk_mb"] = sum(
            path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "features.npz"
        ) / 1e6
    (out / "result.json").write_text(json.dumps(result))


def run_side(side: str, weights: Path, videos: list[Path]) -> tuple[dict[str, Any], Features]:
    """Run one side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "bench.extract", "--side", side, "--weights", str(weights), "--out", folder,
             *map(str, videos)], check=True,
        )  # fmt: skip
        result = json.loads((Path(folder) / "result.json").read_text())
        features = {}
        with contextlib.suppress(FileNotFoundError):
            features = dict(np.load(Path(folder) / "features.npz"))
    return result, features


def compare(videos: list[Path], model: str, rounds: int, sides: list[str]) -> list[dict[str, Any]]:
    """All sides on the same videos, ``rounds`` times in turn; the fastest round of each counts."""
    from bench.published import write_checkpoint

    folder = Path(tempfile.mkdtemp())
    try:
        weights = folder / f"{model}.pth"
        write_checkpoint(model, weights)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        reference: Features = {}
        for _ in range(rounds):
            for side in sides:
                result, features = run_side(side, weights, videos)
                if "skipped" in result:
                    print(f"skipped: {side}: {result['skipped']}", file=sys.stderr)
                    continue
                reference = reference or features
                result["cosine"] = min(common.lowest_cosine(features[name], reference[name]) for name in reference)
                if result["cosine"] < LOWEST_COSINE:
                    raise SystemExit(f"{side} computes something else: cosine {result['cosine']:.5f}")
                runs[side].append(result)
                print(f"{side}: {result['seconds']:.1f} s", file=sys.stderr)
        return [min(found, key=lambda result: result["seconds"]) for found in runs.values() if found]
    finally:
        shutil.rmtree(folder)


def report(results: list[dict[str, Any]]) -> str:
    fastest = min(result["seconds"] for result in results)
    rows = [
        {
            "side": result["side"], "clips/s": result["clips"] / result["seconds"],
            "times slower": result["seconds"] / fastest, "lowest cosine": f"{result['cosine']:.6f}",
            "of encoder alone": result.get("share_of_encoder"), "disk MB": result["disk_mb"],
            "memory GB": result["peak_memory_gb"],
        }
        for result in sorted(results, key=lambda result: result["seconds"])
    ]  # fmt: skip
    return common.table("whole runs, from video files to features on disk", rows)


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("videos", nargs="*", type=Path, help="default: two made videos of 856 x 480")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--only", action="append", help="sides whose name contains this (and the reference)")
    parser.add_argument("--side", help=SUPPRESS)
    parser.add_argument("--weights", type=Path, help=SUPPRESS)
    parser.add_argument("--out", type=Path, help=SUPPRESS)
    options = parser.parse_args()
    if options.side:
        _child(options.side, options.weights, options.out, options.videos)
        return
    from bench.media import surveillance_video

    with tempfile.TemporaryDirectory() as folder:
        frames = 64 if options.quick else 320
        videos = options.videos or [
            surveillance_video(Path(folder) / f"{codec}.mp4", codec=codec, size=(856, 480), frames=frames)
            for codec in ("h264", "hevc")
        ]
        sides = [s for s in SIDES if s == REFERENCE or not options.only or any(part in s for part in options.only)]
        results = compare(videos, options.model, 1 if options.quick else 2, sides)
    print(report(results))
    if options.json:
        common.save(options.json, "extract", results)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: list[dict[str, Any]]) -> None:
    rows = sorted(results, key=lambda result: result["seconds"])
    common.bars(
        path, "whole runs, from video files to features on disk", "clips/s",
        {"": {result["side"]: result["clips"] / result["seconds"] for result in rows}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
