"""Whole runs, from video files to features on disk: streamfeat against the ways it replaces.

Every side takes the same videos and the same weights on the CPU, in a process of its own. The sides take turns; each
one's clock runs from the first video opened to the last feature on disk, without starting Python or loading weights.
A side's time counts only if its features equal those of the published way. Memory is that of the whole process tree.
Besides, streamfeat's encoder runs alone on as many ready-made clips in the same turns: what is left of its speed in a
whole run shows what all the rest costs.

    python -m bench.extract [--quick] [--json FILE] [--model vit_b] [VIDEO ...]
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import common, processes

#: below this a side computes something else, and its time means nothing
LOWEST_COSINE = 0.999
CLIP_FRAMES = 16


class Unavailable(Exception):
    """A peer is not installed here."""


# the sides -----------------------------------------------------------------------------------------------------------
# each: (videos, weights, out folder) -> (features per video, seconds)

Features = dict[str, np.ndarray]
Outcome = tuple[Features, float]


class _StartOfRun:
    """A reporter that remembers when the first thing was said: the weights are loaded and the videos come next."""

    def __init__(self) -> None:
        self.at: float | None = None

    def note(self, text: str) -> None:
        self.at = self.at or time.perf_counter()

    def update(self, counters: Any) -> None:
        pass

    def close(self) -> None:
        pass


def streamfeat_side(videos: list[Path], weights: Path, out: Path, precision: str = "auto") -> Outcome:
    """`streamfeat extract`, to a closed store. In int8 that includes the check of its first batch against fp32."""
    import torch

    import streamfeat
    from streamfeat.model import int8

    if precision == "int8" and (reason := int8.unavailable(torch.device("cpu"))):
        raise Unavailable(reason)
    start = _StartOfRun()
    streamfeat.extract(
        [str(video) for video in videos], out / "out.h5", weights=str(weights), device="cpu", precision=precision,
        reporter=start,
    )  # fmt: skip
    seconds = time.perf_counter() - start.at
    with streamfeat.open(out / "out.h5") as store:
        return {name: store[name].features for name in store}, seconds


def alone_side(videos: list[Path], weights: Path, out: Path) -> Outcome:
    """streamfeat's encoder alone, on as many clips as the videos have, submitted ahead as in a run; nothing on disk."""
    import torch

    from streamfeat.decode.pyav import read_header
    from streamfeat.model import load_encoder

    encoder = load_encoder(str(weights), device="cpu")
    count = sum(read_header(video)[0] // CLIP_FRAMES for video in videos)
    clips = torch.randn(encoder.batch_size, 3, CLIP_FRAMES, 224, 224).to(encoder.input_dtype)
    encoder.encode(clips)
    started, submitted = time.perf_counter(), 0
    waiting: deque[Any] = deque()
    while submitted < count:
        batch = clips[: count - submitted]
        waiting.append(encoder.submit(batch))
        submitted += len(batch)
        if len(waiting) > encoder.ahead:
            waiting.popleft().result()
    for last in waiting:
        last.result()
    return {}, time.perf_counter() - started


def published_side(videos: list[Path], weights: Path, out: Path, device: str = "cpu") -> Outcome:
    """The published way: all frames to JPEG, lists as text, a DataLoader, batches of two, a file a clip, merged.

    Rebuilt from the description of Fed_WSVAD's Backbone; the exchange of red and blue is left out on both ends, so
    that all sides compute the same. fp32, attention written out, as published.
    """
    import cv2
    import torch

    from bench.published import PublishedModel

    model = PublishedModel(weights, device)
    model(torch.zeros(1, 3, CLIP_FRAMES, 224, 224, device=device)).cpu()
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
        for index, feature in zip(indices, model(clips.to(device)).cpu(), strict=True):
            np.save(out / "clips" / f"{int(index):06}.npy", feature.numpy())
    features: dict[str, list[np.ndarray]] = {video.stem: [] for video in videos}
    for index, line in enumerate(lines):
        features[Path(line.rsplit(" ", 1)[0]).name].append(np.load(out / "clips" / f"{index:06}.npy"))
    merged = {}
    for name, rows in features.items():
        merged[name] = np.stack(rows)
        np.save(out / f"{name}.npy", merged[name])
    return merged, time.perf_counter() - started


Open = Callable[[Path], tuple[int, Callable[[int, int], np.ndarray]]]


def _reader() -> Open:
    """Opens a video with decord, or torchcodec without it: (frames, start and stop -> uint8 (n, h, w, 3))."""
    if importlib.util.find_spec("decord"):
        import decord

        def open_decord(video: Path) -> tuple[int, Callable[[int, int], np.ndarray]]:
            reader = decord.VideoReader(str(video), num_threads=0)
            return len(reader), lambda start, stop: reader.get_batch(range(start, stop)).asnumpy()

        return open_decord
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable("neither decord nor torchcodec works here") from error

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


def usual_side(videos: list[Path], weights: Path, out: Path) -> Outcome:
    """The usual script: one clip at a time, fp32, transformers, one `.npy` a video."""
    import torch

    from bench.published import transformers_model

    model, open_video = transformers_model(weights, torch.float32), _reader()
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
    return features, time.perf_counter() - started


def usual_well_side(videos: list[Path], weights: Path, out: Path, precision: str) -> Outcome:
    """The usual script, well written: batches, SDPA, decode in a worker process that runs ahead."""
    import torch

    from bench.published import transformers_model

    _reader()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = transformers_model(weights, dtype)
    model(torch.zeros(4, 3, CLIP_FRAMES, 224, 224, dtype=dtype))

    class Clips(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            torch.set_num_threads(1)
            open_video = _reader()
            for video in videos:
                count, read = open_video(video)
                for start in range(0, count - CLIP_FRAMES + 1, CLIP_FRAMES):
                    yield video.stem, _prepare(read(start, start + CLIP_FRAMES)).to(dtype)

    started = time.perf_counter()
    rows: dict[str, list[Any]] = {video.stem: [] for video in videos}
    for names, clips in torch.utils.data.DataLoader(Clips(), batch_size=4, num_workers=1, prefetch_factor=2):
        for name, row in zip(names, model(clips), strict=True):
            rows[name].append(row)
    features = {name: torch.stack(found).numpy() for name, found in rows.items()}
    for name, array in features.items():
        np.save(out / f"{name}.npy", array)
    return features, time.perf_counter() - started


PUBLISHED, OURS, ALONE = "published way, fp32", "streamfeat", "streamfeat's encoder alone"
OURS_INT8 = "streamfeat, int8"
USUAL, WELL = "usual script, fp32", "usual script well written"
#: half precision belongs to the script well written, but not every CPU gains by it, so both are run
SIDES: dict[str, Callable[[list[Path], Path, Path], Outcome]] = {
    PUBLISHED: published_side,
    USUAL: usual_side,
    f"{WELL}, fp32": lambda v, w, o: usual_well_side(v, w, o, "fp32"),
    f"{WELL}, bf16": lambda v, w, o: usual_well_side(v, w, o, "bf16"),
    OURS: streamfeat_side,
    OURS_INT8: lambda v, w, o: streamfeat_side(v, w, o, "int8"),
    ALONE: alone_side,
}


# running them --------------------------------------------------------------------------------------------------------


def _child(side: str, weights: Path, out: Path, videos: list[Path]) -> None:
    """Run one side in this process and leave what it gave in ``out``."""
    work = out / "work"
    work.mkdir()
    result: dict[str, Any] = {}
    try:
        features, seconds = SIDES[side](videos, weights, work)
    except (Unavailable, ImportError) as error:
        result["skipped"] = str(error).splitlines()[0]
    else:
        result = {"seconds": seconds, "disk_mb": sum(p.stat().st_size for p in work.rglob("*") if p.is_file()) / 1e6}
        np.savez(out / "features.npz", **features)
    (out / "result.json").write_text(json.dumps(result))


def run_side(side: str, weights: Path, videos: list[Path]) -> tuple[dict[str, Any], Features]:
    """Run one side in a process of its own: its figures, or why there are none, and its features."""
    with tempfile.TemporaryDirectory() as folder:
        ended = processes.run(
            "bench.extract", "--side", side, "--weights", str(weights), "--out", folder, *map(str, videos)
        )
        if ended.returncode:
            return {"skipped": ended.last_words}, {}
        result = json.loads((Path(folder) / "result.json").read_text())
        features = {}
        with contextlib.suppress(FileNotFoundError):
            features = dict(np.load(Path(folder) / "features.npz"))
    return result | {"memory_mb": ended.peak_bytes and ended.peak_bytes / 2**20}, features


def refusal(features: Features, reference: Features) -> str | None:
    """Why the time of a side with these features does not count; None if it does."""
    if features.keys() != reference.keys():
        return f"has features of {len(features)} videos instead of {len(reference)}"
    for name, ours in features.items():
        if ours.shape != reference[name].shape:
            return f"{name}: features of shape {ours.shape} instead of {reference[name].shape}"
    cosine = _lowest_cosine(features, reference)
    # not (>=), so that a NaN is refused
    return None if cosine >= LOWEST_COSINE else f"computes something else: cosine {cosine:.5f}"


def _lowest_cosine(features: Features, reference: Features) -> float:
    return float(np.min([common.lowest_cosine(features[name], reference[name]) for name in reference]))


def compare(videos: list[Path], model: str, rounds: int, sides: list[str]) -> dict[str, Any]:
    """All sides on the same videos, in turn, ``rounds`` times; medians, and ratios turn by turn."""
    from bench.published import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{model}.pth"
        write_checkpoint(model, weights)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        left_out: dict[str, str] = {}
        reference: Features = {}
        for _ in range(rounds):
            for side in sides:
                if side in left_out:
                    continue
                result, features = run_side(side, weights, videos)
                if "skipped" in result:
                    left_out[side] = f"skipped: {side}: {result['skipped']}"
                elif side != ALONE:
                    reference = reference or features
                    why = refusal(features, reference)
                    if why:
                        left_out[side] = f"refused: {side}: {why}"
                    else:
                        result["cosine"] = _lowest_cosine(features, reference)
                if side in left_out:
                    print(left_out[side], file=sys.stderr)
                else:
                    runs[side].append(result)
                    print(f"{side}: {result['seconds']:.1f} s", file=sys.stderr)
    if OURS in left_out:
        raise SystemExit(f"bench.extract: {left_out[OURS]}")
    clips = sum(map(len, reference.values()))
    counted = {side: found for side, found in runs.items() if side not in left_out}
    return {
        "model": model, "videos": [video.name for video in videos], "clips": clips, "rounds": rounds,
        "left out": list(left_out.values()), "sides": _sides(counted, clips), "share of encoder": _share(counted),
    }  # fmt: skip


def _sides(runs: dict[str, list[dict[str, Any]]], clips: int) -> list[dict[str, Any]]:
    seconds = {side: [run["seconds"] for run in found] for side, found in runs.items()}
    return [
        {
            "side": side, "seconds": seconds[side], "clips/s": clips / statistics.median(seconds[side]),
            "times ours": common.median_ratio(seconds[side], seconds[OURS]),
            "cosine": min(run["cosine"] for run in found), "disk_mb": found[0]["disk_mb"],
            "memory_mb": statistics.median(run["memory_mb"] or 0 for run in found) or None,
        }
        for side, found in runs.items()
        if side != ALONE
    ]  # fmt: skip


def _share(runs: dict[str, list[dict[str, Any]]]) -> float | None:
    """Speed of a whole run over that of the encoder alone."""
    if ALONE not in runs:
        return None
    return common.median_ratio(*([run["seconds"] for run in runs[side]] for side in (ALONE, OURS)))


def report(results: dict[str, Any]) -> str:
    rows = [
        {
            "side": side["side"], "clips/s": side["clips/s"], "x its time": side["times ours"],
            "lowest cosine": f"{side['cosine']:.6f}", "disk MB": side["disk_mb"], "memory MB": side["memory_mb"],
        }
        for side in sorted(results["sides"], key=lambda side: side["clips/s"])
    ]  # fmt: skip
    title = f"whole runs, {results['model']}, {results['clips']} clips; x its time: over streamfeat's"
    lines = [common.table(title, rows)]
    if results["share of encoder"]:
        lines.append(f"  streamfeat whole over its encoder alone: {results['share of encoder']:.3f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("videos", nargs="*", type=Path, help="default: two made videos of 856 x 480")
    parser.add_argument("--model", help="size (default: vit_b, quick: vit_s)")
    parser.add_argument("--frames", type=int, help="of the made videos (default: 320, quick: 64)")
    parser.add_argument("--rounds", type=int, help="turns (default: 2, quick: 1)")
    parser.add_argument("--only", action="append", help="sides whose name contains this (and streamfeat)")
    parser.add_argument("--side", help=SUPPRESS)
    parser.add_argument("--weights", type=Path, help=SUPPRESS)
    parser.add_argument("--out", type=Path, help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        _child(options.side, options.weights, options.out, options.videos)
        return
    from bench.media import surveillance_video

    with tempfile.TemporaryDirectory() as folder:
        frames = options.frames or (64 if options.quick else 320)
        videos = options.videos or [
            surveillance_video(Path(folder) / f"{codec}.mp4", codec=codec, size=(856, 480), frames=frames)
            for codec in ("h264", "hevc")
        ]
        sides = [s for s in SIDES if s in (OURS, ALONE) or not options.only or any(part in s for part in options.only)]
        model = options.model or ("vit_s" if options.quick else "vit_b")
        results = compare(videos, model, options.rounds or (1 if options.quick else 2), sides)
    print(report(results))
    if options.json:
        common.save(options.json, "extract", results, quick=options.quick)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: dict[str, Any]) -> None:
    common.bars(
        path, f"whole runs, {results['model']}", "clips/s",
        {"": {side["side"]: side["clips/s"] for side in results["sides"]}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
