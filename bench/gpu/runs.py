"""Whole runs, from files to a closed store or to JPEG files."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import common
from bench.gpu.stage import CLIP_FRAMES, Stage


class _Clock:
    """A reporter that remembers when the first thing was said: the weights are loaded and the videos come next."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.at = self.at or time.perf_counter()
        self.said.append(text)

    def update(self, counters: Any) -> None:
        pass

    def close(self) -> None:
        pass


def whole_run(
    stage: Stage, videos: Sequence[Path], model: str, **options: Any
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    """A whole run to a closed store: what it took, and features and decoder of each video."""
    import streamfeat

    clock = _Clock()
    with tempfile.TemporaryDirectory(dir=stage.folder) as folder:
        summary = streamfeat.extract(
            [str(video) for video in videos], Path(folder) / "out.h5", weights=str(stage.weights(model)),
            device=stage.device, reporter=clock, **options,
        )
        seconds = time.perf_counter() - clock.at
        if summary.failures:
            raise RuntimeError(next(iter(summary.failures.values())))
        with streamfeat.open(Path(folder) / "out.h5") as store:
            found = {name: (store[name].features[:], store[name].attrs["decoder"]) for name in store}
    chosen = next((text for text in clock.said if " to do" in text), "")
    return {"frames": summary.frames, "clips": summary.clips, "seconds": seconds, "fallbacks": len(summary.fallbacks),
            "chosen": chosen}, found


def extract(stage: Stage) -> None:
    """Whole runs at 480p against the slower of encoder and decoder as measured alone."""
    for model, (count, length) in zip(stage.scale.models, stage.scale.runs, strict=True):
        with stage.attempt(model=model):
            videos = [stage.path("480p", length, number) for number in range(count)]
            taken, found = whole_run(stage, videos, model)
            speed = taken["frames"] / taken["seconds"]
            limits = {"encoder": _encoder_frames(stage, model), "decoder": _decoder_frames(stage)}
            known = {name: value for name, value in limits.items() if value}
            slower = min(known, key=known.get) if known else None
            stage.row(
                model=model, videos=count, **{key: taken[key] for key in ("frames", "clips", "seconds", "fallbacks")},
                decoder=", ".join(sorted({how for _, how in found.values()})), **{"frames/s": speed}, limit=slower,
                share=speed / known[slower] if slower else None, chosen=taken["chosen"],
            )


def _encoder_frames(stage: Stage, model: str) -> float | None:
    rates = [row["clips/s"] for row in stage.rows_of(f"encode-{model}") if row.get("side", "").startswith("auto")
             and "clips/s" in row]
    return statistics.median(rates) * CLIP_FRAMES if rates else None


def _decoder_frames(stage: Stage) -> float | None:
    rates = [row["frames/s"] for row in stage.rows_of("decode") if row.get("video") == "480p" and "frames/s" in row
             and row["side"].startswith("streamfeat")]
    return max(rates, default=None)


def published(stage: Stage) -> None:
    """The published way on the same device: JPEG files, batches of 2, fp32, eager, on a sample."""
    from bench.extract import published_side

    for model in dict.fromkeys(stage.scale.models):
        with stage.attempt(model=model), tempfile.TemporaryDirectory(dir=stage.folder) as folder:
            videos = [stage.path("480p", "short")]
            features, seconds = published_side(videos, stage.weights(model), Path(folder), stage.device)
            stage.empty()
            taken, found = whole_run(stage, videos, model)
            frames = taken["frames"]
            ours = [row for row in stage.rows_of("extract") if row.get("model") == model and "frames/s" in row]
            fast = ours[0]["frames/s"] if ours else frames / taken["seconds"]
            cosine = common.lowest_cosine(next(iter(found.values()))[0], next(iter(features.values())))
            slow = frames / seconds
            stage.row(model=model, frames=frames, **{"frames/s": slow, "extract over it": fast / slow}, cosine=cosine)


def colour(stage: Stage) -> None:
    """Features of one video through NVDEC and through PyAV, limited and full range: cosine of each clip."""
    for name in ("limited", "full"):
        with stage.attempt(range=name):
            video, model = stage.folder / f"range-{name}.mp4", stage.scale.models[1]
            decoders = ("dali", "pyav") if stage.on_gpu else ("pyav", "pyav")
            runs = [whole_run(stage, [video], model, decoder=decoder)[1] for decoder in decoders]
            (ours, how), (reference, _) = (next(iter(found.values())) for found in runs)
            a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (ours, reference))
            cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
            stage.row(range=name, decoder=how, clips=len(ours), lowest=float(cosines.min()), mean=float(cosines.mean()))


def jpeg(stage: Stage) -> None:
    """Frames as JPEG files: decoded and coded on the GPU, and by the processor."""
    from PIL import Image

    from streamfeat.frames import dump_frames

    for side, device in (("GPU", stage.torch_device()), ("processor", None)):
        with stage.attempt(side=side), tempfile.TemporaryDirectory(dir=stage.folder) as folder:
            videos = [stage.path("480p", "short", number) for number in range(max(1, min(4, stage.scale.runs[0][0])))]
            started = time.perf_counter()
            dumped = dump_frames([str(video) for video in videos], folder, device=device)
            seconds = time.perf_counter() - started
            frames = sum(dumped.frames.values())
            first = min(Path(folder).rglob("*.jpg"))
            with Image.open(first) as image:
                # 1: a chroma value for every pixel, so the GPU made it; 2: one for four
                chroma, table = image.layer[0][1] if hasattr(image, "layer") else None, image.quantization[0][:4]
            stage.row(side=side, frames=frames, **{"frames/s": frames / seconds}, chroma=chroma, table=str(table))
