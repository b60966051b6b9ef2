"""Everything on one GPU, in one run of eight minutes at most: encoder, decoder, whole runs, precision, memory, stages.

Each stage has a process and a time of its own: one that crashes or hangs takes no other along, and what it had measured
by then counts. Without NVDEC the CPU lanes and the encoder are measured, and the table says so.

    python -m bench.gpu [--quick] [--json FILE] [--only STAGE,...] [VIDEO ...]
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench import common

#: seconds for all stages; what has not begun by then is left out
TOTAL_SECONDS = 460
#: characters of what a stage that had errors has printed
_LOG_SHOWN = 3000
CLIP_FRAMES = 16
IMAGE_SIZE = 224
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured."""

    #: the larger and the smaller model
    models: tuple[str, str]
    #: width and height of the made videos, by name
    sizes: dict[str, tuple[int, int]]
    #: frames that are coded once, and how often they come again in each length
    base_frames: int
    lengths: dict[str, int]
    #: videos of a whole run, for the larger and the smaller model: how many, and of which length
    runs: tuple[tuple[int, str], tuple[int, str]]
    #: frames of the long video whose memory is measured against a minute's
    minute: int
    long: int
    #: seconds that one rate is measured for
    seconds: float
    batches: tuple[int, ...]


FULL = Scale(
    ("vit_g", "vit_b"), {"480p": (856, 480), "1080p": (1920, 1080)}, 64, {"short": 12, "middle": 36, "long": 100},
    ((8, "middle"), (16, "long")), 1500, 90_000, 1.5, (16, 32, 64),
)  # fmt: skip
QUICK = dataclasses.replace(
    FULL, lengths={"short": 6, "middle": 12, "long": 25}, runs=((4, "short"), (8, "long")), long=15_000, seconds=0.5,
    batches=(16, 64),
)  # fmt: skip
#: for a machine without a GPU: every line of this file that can run there does
TINY = Scale(
    ("vit_tiny", "vit_tiny"), {"480p": (128, 96), "1080p": (160, 120)}, 16, {"short": 1, "middle": 2, "long": 2},
    ((2, "short"), (2, "short")), 16, 48, 0.01, (1,),
)  # fmt: skip


class Stage:
    """What a stage works with, and where its rows go: each is on disk as soon as it is there."""

    def __init__(self, name: str, folder: Path, device: str, scale: Scale, seconds: float, videos: list[Path]) -> None:
        self.name, self.folder, self.device, self.scale, self.videos = name, folder, device, scale, videos
        self._ends = time.monotonic() + seconds
        self._rows: list[Row] = []

    def row(self, **values: Any) -> Row:
        self._rows.append(values)
        (self.folder / f"{self.name}.json").write_text(json.dumps(self._rows))
        return values

    @contextlib.contextmanager
    def attempt(self, **labels: Any) -> Iterator[None]:
        """Whatever goes wrong in here becomes a row with these labels and the error."""
        try:
            yield
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                self.empty()
            traceback.print_exc()
            self.row(**labels, error=one_line(error))

    def left(self) -> float:
        return self._ends - time.monotonic()

    def rows_of(self, name: str) -> list[Row]:
        """What an earlier stage has measured."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except OSError:
            return []

    # what all of them need

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def synchronise(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def empty(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.empty_cache()

    def torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    def path(self, kind: str, length: str, number: int = 0) -> Path:
        return self.folder / "videos" / f"{kind}-{length}-{number}.mp4"

    def weights(self, model: str) -> Path:
        return self.folder / f"{model}.pth"

    def encoder(self, weights: Any, precision: str, *, batch: int | str = "auto", engine: str = "graph") -> Any:
        """An encoder of weights that are loaded already: reading vit_g's file takes seconds."""
        from streamfeat.model import Encoder

        return Encoder(
            weights, self.torch_device(), precision, ("mean", "std", "max"), IMAGE_SIZE, CLIP_FRAMES, batch, engine
        )

    def load(self, model: str) -> Any:
        from streamfeat.model import weights

        return weights.load(self.weights(model))

    def clips(self, count: int) -> Any:
        """Decoded, normalised clips ``(count, 3, T, S, S)``, float32, from the videos given or the made ones."""
        import torch

        from streamfeat.clips import ClipWindow
        from streamfeat.decode.pyav import PyAVDecoder
        from streamfeat.recipe import Recipe
        from streamfeat.videos import Video

        found: list[Any] = []
        for video in self.videos or [self.path(kind, "middle") for kind in self.scale.sizes]:
            stream = PyAVDecoder(threads=4).open(Video(video.stem, video), Recipe(), torch.device("cpu"))
            window = ClipWindow(Recipe(), torch.empty)
            for chunk in stream:
                found += [clip.frames for clip in window.push(chunk)]
                if len(found) >= count:
                    break
            stream.close()
            if len(found) >= count:
                break
        return torch.stack(found[:count])


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# media ---------------------------------------------------------------------------------------------------------------


def media(stage: Stage) -> None:
    """The videos: H.264, a scene coded once and repeated. And the weights, random but spread."""
    from bench.media import encode, made_pictures, repeat
    from bench.published import write_checkpoint

    scale = stage.scale
    (stage.folder / "videos").mkdir(exist_ok=True)
    copies = max(count for count, _ in scale.runs)
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_checkpoint, name, stage.weights(name)) for name in sorted(set(scale.models))]
        for kind, size in scale.sizes.items():
            started = time.perf_counter()
            base = encode(made_pictures(size, scale.base_frames), stage.folder / f"{kind}.mp4", "h264")
            for length, times in scale.lengths.items():
                first = repeat(base, stage.path(kind, length), times)
                for number in range(1, copies):
                    os.link(first, stage.path(kind, length, number))
            stage.row(made=kind, width=size[0], height=size[1], seconds=time.perf_counter() - started)
        shown = made_pictures(scale.sizes["480p"], scale.base_frames)
        for name, full_range in (("limited", False), ("full", True)):
            encode(shown, stage.folder / f"range-{name}.mp4", "h264", full_range=full_range)
        small = encode(made_pictures((320, 240), scale.base_frames), stage.folder / "small.mp4", "h264")
        for name, frames in (("minute", scale.minute), ("hour", scale.long)):
            repeat(small, stage.folder / f"memory-{name}.mp4", max(1, frames // scale.base_frames))
        for written in writing:
            written.result()


# the encoder ---------------------------------------------------------------------------------------------------------


def rate(stage: Stage, encoder: Any, seconds: float | None = None) -> float:
    """Clips per second of an encoder, as a run uses it: the next batch is submitted before the last is read."""
    import torch

    clips = torch.randn(encoder.batch_size, *encoder.clip_shape, device=encoder.device).to(encoder.input_dtype)
    seconds = seconds or stage.scale.seconds
    with encoder.own_stream():
        stage.synchronise()
        encoder.encode(clips)
        waiting, done, started = [encoder.submit(clips)], 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            waiting.append(encoder.submit(clips))
            waiting.pop(0).result()
            done += len(clips)
        waiting.pop().result()
        return (done + len(clips)) / (time.perf_counter() - started)


def best_product(stage: Stage, model: str, batch: int, dtype: Any) -> float:
    """FLOP/s of the fastest matrix product: those of a block for a batch, and a square one."""
    import torch

    from streamfeat.model.vit import SIZES

    size = SIZES[model]
    rows, c, hidden = batch * _tokens(model), size.channels, size.hidden
    square = 8192 if stage.on_gpu else 128
    best, seconds = 0.0, min(0.15, stage.scale.seconds)
    for m, k, n in ((rows, c, 3 * c), (rows, c, hidden), (rows, hidden, c), (square, square, square)):
        left = torch.randn(m, k, device=stage.torch_device()).to(dtype)
        right = torch.randn(n, k, device=stage.torch_device()).to(dtype)
        out = torch.empty(m, n, dtype=dtype, device=stage.torch_device())
        torch.mm(left, right.t(), out=out)
        stage.synchronise()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(5):
                torch.mm(left, right.t(), out=out)
            stage.synchronise()
            done += 5
        best = max(best, done * 2 * m * k * n / (time.perf_counter() - started))
    return best


def _tokens(model: str) -> int:
    from streamfeat.model.vit import SIZES

    return int(np.prod(SIZES[model].grid(CLIP_FRAMES, IMAGE_SIZE)))


def encode(stage: Stage, model: str) -> None:
    """The encoder alone, in every way it can run, against the best product measured between them.

    The cosine is that to the features of the first way, on random clips.
    """
    import torch
    from torch.nn.attention import SDPBackend

    from streamfeat.model import cuda, vit
    from streamfeat.model.vit import SIZES

    weights, flops = stage.load(model), SIZES[model].flops()
    precision, dtype = ("fp16", torch.float16) if stage.on_gpu else ("fp32", torch.float32)
    products = []
    sample = torch.randn(4, 3, CLIP_FRAMES, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    features: list[np.ndarray] = []

    def measure(side: str, batch: int | str = "auto", engine: str = "graph") -> None:
        if stage.left() < 3 * stage.scale.seconds:
            stage.row(side=side, error="no time left")
            return
        with stage.attempt(side=side):
            encoder = stage.encoder(weights, precision, batch=batch, engine=engine)
            products.append(best_product(stage, model, encoder.batch_size, dtype))
            found = rate(stage, encoder)
            speed = {"clips/s": found, "TFLOP/s": found * flops / 1e12, "best product": products[-1] / 1e12}
            share = found * flops / max(products)
            features.append(encoder.encode(sample))
            cosine = common.lowest_cosine(features[-1], features[0])
            stage.row(side=side, by=encoder.how, batch=encoder.batch_size, **speed, share=share, cosine=cosine)
        stage.empty()

    measure("auto")
    measure("eager", engine="eager")
    for batch in stage.scale.batches:
        measure(f"batch {batch}", batch)
    measure("torch.compile", engine="compile")
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        if stage.on_gpu:
            with mock.patch.object(cuda, "attention_backend", lambda *_, backend=backend: backend):
                measure(backend.name.lower().replace("_", " "))
    if stage.on_gpu:
        # what GELU costs: by its approximation, which cuBLAS computes as the product's values leave the registers
        def approximate(mlp: Any, x: Any) -> Any:
            first = torch._addmm_activation(mlp.fc1.bias, x.flatten(0, 1), mlp.fc1.weight.t(), use_gelu=True)
            return mlp.fc2(first).view(x.shape)

        with mock.patch.object(vit.Mlp, "forward", approximate):
            measure("GELU by tanh, in the product")
    # as it is used, once more at the end: a chip that has grown warm
    measure("auto again")


def fp8(stage: Stage) -> None:
    """fp8 against fp16 for the larger model: speed, and the cosine of features of decoded clips."""
    import torch

    model = stage.scale.models[0]
    weights, clips = stage.load(model), stage.clips(8)
    half = stage.encoder(weights, "fp16")
    wanted, speed = half.encode(clips), rate(stage, half)
    stage.row(side="fp16", by=half.how, batch=half.batch_size, **{"clips/s": speed})
    del half
    stage.empty()
    with stage.attempt(side="fp8"):
        from streamfeat.model import fp8 as module

        if reason := module.unavailable(stage.torch_device()):
            raise RuntimeError(reason)
        quick = stage.encoder(weights, "fp8", engine="compile")
        quick._is_checked = True  # the cosine is what is measured here
        found = quick.encode(clips)
        cosine = common.lowest_cosine(found, wanted)
        fast = rate(stage, quick)
        stage.row(side="fp8", by=quick.how, batch=quick.batch_size, **{"clips/s": fast, "over fp16": fast / speed},
                  cosine=cosine, refused=bool(cosine < 0.999))
        stage.row(side="best product in fp8", **{"TFLOP/s": _fp8_product(stage, torch) / 1e12})


def _fp8_product(stage: Stage, torch: Any) -> float:
    from streamfeat.model.fp8 import quantise, scaled_product

    n = 8192
    (a, a_scale), (b, b_scale) = (quantise(torch.randn(n, n, device=stage.torch_device())) for _ in range(2))
    bias = torch.zeros(n, dtype=torch.bfloat16, device=stage.torch_device())
    b_scale = b_scale.view(1, -1)
    scaled_product(a, a_scale, b, b_scale, bias)
    stage.synchronise()
    started = time.perf_counter()
    for _ in range(20):
        scaled_product(a, a_scale, b, b_scale, bias)
    stage.synchronise()
    return 20 * 2 * n**3 / (time.perf_counter() - started)


def precision(stage: Stage) -> None:
    """Features of decoded clips in fp16 against fp32: the lowest cosine of a clip's statistic."""
    for model in dict.fromkeys(stage.scale.models):
        with stage.attempt(model=model):
            weights, clips = stage.load(model), stage.clips(8)
            exact = stage.encoder(weights, "fp32", batch=2, engine="eager").encode(clips)
            found = stage.encoder(weights, "fp16").encode(clips)
            stage.row(model=model, clips=len(clips), cosine=common.lowest_cosine(found, exact))
        stage.empty()


# decoding ------------------------------------------------------------------------------------------------------------


def decode(stage: Stage) -> None:
    """Decode, resize to 224 x 224 and normalise to float32 on the device, by number of parallel decoders."""
    from streamfeat.decode import dali, nvdec

    device = stage.torch_device()
    engines = (nvdec.engines(0) if stage.on_gpu else None) or 1
    without = dali.unavailable(device)
    if without:
        stage.row(side="streamfeat DALI", error=without)
    for kind in stage.scale.sizes:
        for lanes in sorted({1, 2, engines}) if stage.on_gpu else (1, 2):
            length = "long" if lanes == engines else "short"
            for side, make in _decoders(stage, lanes).items():
                if stage.left() < 5:
                    stage.row(video=kind, lanes=lanes, side=side, error="no time left")
                    continue
                with stage.attempt(video=kind, lanes=lanes, side=side):
                    read = make()
                    frames, seconds = _read_all(stage, read, [stage.path(kind, length, n) for n in range(lanes)])
                    stage.row(video=kind, lanes=lanes, side=side, frames=frames, **{"frames/s": frames / seconds})


def _read_all(stage: Stage, read: Callable[[Path], int], paths: Sequence[Path]) -> tuple[int, float]:
    """Frames and seconds of reading all files side by side, after a first one that is not counted."""
    read(stage.path("480p", "short", 0))
    with ThreadPoolExecutor(len(paths)) as pool:
        started = time.perf_counter()
        frames = sum(pool.map(read, paths))
        stage.synchronise()
        return frames, time.perf_counter() - started


def _decoders(stage: Stage, lanes: int) -> dict[str, Callable[[], Callable[[Path], int]]]:
    """Sides that decode this number of files side by side; making one raises where it does not work here."""

    def streamfeat(decoder: Any) -> Callable[[Path], int]:
        from streamfeat.decode.streams import own_stream
        from streamfeat.recipe import Recipe
        from streamfeat.videos import Video

        device, recipe = stage.torch_device(), Recipe(upscale_below=None)

        def read(path: Path) -> int:
            with own_stream(device):
                stream = decoder.open(Video(path.stem, path), recipe, device)
                try:
                    return sum(len(frames) for frames in stream)
                finally:
                    stream.close()

        return read

    def dali() -> Callable[[Path], int]:
        from streamfeat.decode import dali

        if reason := dali.unavailable(stage.torch_device()):
            raise RuntimeError(reason)
        return streamfeat(dali.DaliDecoder(stage.torch_device()))

    def pyav() -> Callable[[Path], int]:
        from streamfeat.decode.pyav import PyAVDecoder

        return streamfeat(PyAVDecoder(threads=max(1, (os.cpu_count() or 1) // lanes)))

    def normalised(frames: Any) -> int:
        """The peers' frames, uint8 ``(n, 3, h, w)``, to what streamfeat gives."""
        from torch.nn.functional import interpolate

        return len(interpolate(frames.float(), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear").div_(127.5).sub_(1))

    def torchcodec(backend: str | None) -> Callable[[Path], int]:
        from torchcodec import decoders

        def read(path: Path) -> int:
            chosen = decoders.set_cuda_backend(backend) if backend else contextlib.nullcontext()
            with chosen:
                decoder = decoders.VideoDecoder(
                    str(path), device="cuda" if stage.on_gpu else "cpu", seek_mode="approximate"
                )
            total = 0
            for start in range(0, len(decoder), CLIP_FRAMES):
                stop = min(start + CLIP_FRAMES, len(decoder))
                total += normalised(decoder.get_frames_in_range(start, stop).data)
            return total

        return read

    def pynvvideocodec() -> Callable[[Path], int]:
        import PyNvVideoCodec as nvc
        import torch

        def read(path: Path) -> int:
            decoder = nvc.SimpleDecoder(
                str(path), gpu_id=0, use_device_memory=True, output_color_type=nvc.OutputColorType.RGB
            )
            total = 0
            while total < len(decoder):
                batch = decoder.get_batch_frames(min(CLIP_FRAMES, len(decoder) - total))
                if not batch:
                    break
                total += normalised(torch.stack([torch.from_dlpack(frame) for frame in batch]).permute(0, 3, 1, 2))
            return total

        return read

    sides: dict[str, Callable[[], Callable[[Path], int]]] = {"streamfeat PyAV": pyav}
    if stage.on_gpu:
        sides = {
            "streamfeat DALI": dali, "PyNvVideoCodec": pynvvideocodec, "torchcodec": lambda: torchcodec(None),
            "torchcodec beta": lambda: torchcodec("beta"), "streamfeat PyAV": pyav,
        }  # fmt: skip
    return sides


def colour(stage: Stage) -> None:
    """Features of one video through NVDEC and through PyAV, limited and full range: cosine of each clip."""
    for name in ("limited", "full"):
        with stage.attempt(range=name):
            video, model = stage.folder / f"range-{name}.mp4", stage.scale.models[1]
            decoders = ("dali", "pyav") if stage.on_gpu else ("pyav", "pyav")
            runs = [_extract(stage, [video], model, decoder=decoder)[1] for decoder in decoders]
            (ours, how), (reference, _) = (next(iter(found.values())) for found in runs)
            a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (ours, reference))
            cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
            stage.row(range=name, decoder=how, clips=len(ours), lowest=float(cosines.min()), mean=float(cosines.mean()))


# whole runs ----------------------------------------------------------------------------------------------------------


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


def _extract(
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
            taken, found = _extract(stage, videos, model)
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
            taken, found = _extract(stage, videos, model)
            frames = taken["frames"]
            ours = [row for row in stage.rows_of("extract") if row.get("model") == model and "frames/s" in row]
            fast = ours[0]["frames/s"] if ours else frames / taken["seconds"]
            cosine = common.lowest_cosine(next(iter(found.values()))[0], next(iter(features.values())))
            slow = frames / seconds
            stage.row(model=model, frames=frames, **{"frames/s": slow, "extract over it": fast / slow}, cosine=cosine)


def memory(stage: Stage) -> None:
    """Most memory of the device that a whole run takes, a minute of video against an hour: each in its own process."""
    for name in ("minute", "hour"):
        with stage.attempt(video=name):
            frames, taken = _apart(stage, f"memory-{name}")
            stage.row(video=name, frames=frames, GiB=taken / 2**30)


def memory_of(stage: Stage, name: str) -> None:
    """In a process of its own: the most memory that a run on one video takes beyond what was taken before."""
    used = _device_bytes(stage)
    before, most, over = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        taken, _ = _extract(stage, [stage.folder / f"{name}.mp4"], stage.scale.models[1])
    finally:
        over.set()
        watcher.join()
    stage.row(frames=taken["frames"], bytes=max(most, used()) - before)


def _device_bytes(stage: Stage) -> Callable[[], int]:
    if not stage.on_gpu:
        return lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    import torch

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    return used


def _apart(stage: Stage, name: str) -> tuple[int, int]:
    if stage.scale is TINY:
        memory_of(Stage(name, stage.folder, stage.device, stage.scale, stage.left(), []), name)
    else:
        _run_child(name, stage.folder, stage.device, stage.scale is QUICK, stage.left(), [])
    (row,) = stage.rows_of(name)
    return row["frames"], row["bytes"]


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


#: names of kernels -> what they do; the first that fits counts
KERNELS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "sdp")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "s16816", "wgmma")),
    ("decode: colours", ("yuv", "nv12", "convert_frame", "convertframe", "color")),
    ("resize", ("resampl", "resize")),
    ("normalise", ("slice", "crop", "normalize_permute", "sliceflip", "hwc")),
    ("copy back", ("memcpy dtoh", "device -> pageable", "device -> pinned", "dtoh")),
    ("upload", ("memcpy htod", "htod")),
    ("copies on the device", ("memcpy dtod", "dtod", "copy", "memset", "cat")),
    ("norm", ("layer_norm", "layernorm")),
    ("element by element", ("elementwise", "gelu", "triton", "vectorized", "reduce")),
)


def stages(stage: Stage) -> None:
    """Where the time of a whole run goes: kernels by what they do, and what the threads wait for."""
    from torch.profiler import ProfilerActivity, profile

    from streamfeat.decode.lanes import Lanes
    from streamfeat.model.encoder import Pending
    from streamfeat.store import StoreWriter

    for model in dict.fromkeys(stage.scale.models[::-1]):
        if stage.left() < 10 and stage.on_gpu:
            stage.row(model=model, error="no time left")
            continue
        with stage.attempt(model=model):
            waited: dict[str, float] = {"wait for clips": 0.0, "wait for features": 0.0, "write": 0.0}
            with (
                _timed_iterator(Lanes, "events", waited, "wait for clips"),
                _timed(Pending, "result", waited, "wait for features"),
                _timed(StoreWriter, "commit", waited, "write"),
            ):
                activities = [ProfilerActivity.CUDA] if stage.on_gpu else [ProfilerActivity.CPU]
                with profile(activities=activities) as watched:
                    taken, _ = _extract(stage, [stage.path("480p", "short", n) for n in (0, 1)], model)
            seconds = taken["seconds"]
            spent: dict[str, float] = {}
            for event in watched.key_averages():
                took = getattr(event, "self_device_time_total" if stage.on_gpu else "self_cpu_time_total", 0) / 1e6
                name = event.key.lower()
                kind = next((kind for kind, parts in KERNELS if any(part in name for part in parts)), "other")
                spent[kind] = spent.get(kind, 0.0) + took
            for kind, took in sorted(spent.items(), key=lambda item: -item[1]):
                stage.row(model=model, stage=kind, where="device", seconds=took, share=took / seconds)
            for kind, took in waited.items():
                stage.row(model=model, stage=kind, where="host", seconds=took, share=took / seconds)
            stage.row(model=model, stage="whole run", where="", seconds=seconds, share=1.0)


@contextlib.contextmanager
def _timed(owner: type, name: str, waited: dict[str, float], key: str) -> Iterator[None]:
    """Add what calls of a method take to ``waited``."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            waited[key] += time.perf_counter() - started

    with mock.patch.object(owner, name, timed):
        yield


@contextlib.contextmanager
def _timed_iterator(owner: type, name: str, waited: dict[str, float], key: str) -> Iterator[None]:
    """Add what waiting for each thing that a method yields takes to ``waited``."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
        found = method(*arguments, **options)
        while True:
            started = time.perf_counter()
            thing = next(found, None)
            waited[key] += time.perf_counter() - started
            if thing is None:
                return
            yield thing

    with mock.patch.object(owner, name, timed):
        yield


# running them --------------------------------------------------------------------------------------------------------


def stages_of(scale: Scale) -> dict[str, tuple[Callable[[Stage], None], float]]:
    """Name to function and seconds, in the order of what matters most."""
    encoders = {
        f"encode-{model}": ((lambda stage, model=model: encode(stage, model)), seconds)
        for model, seconds in zip(scale.models, (90, 60), strict=True)
    }
    return {
        "media": (media, 75), **encoders, "decode": (decode, 75), "extract": (extract, 70), "fp8": (fp8, 75),
        "precision": (precision, 45), "published": (published, 60), "colour": (colour, 30), "memory": (memory, 75),
        "stages": (stages, 45), "jpeg": (jpeg, 25),
    }  # fmt: skip


def _run_stage(name: str, folder: Path, device: str, scale: Scale, seconds: float, videos: list[Path]) -> None:
    """Run a stage in this process."""
    stage = Stage(name, folder, device, scale, seconds, videos)
    if name.startswith("memory-"):
        memory_of(stage, name)
        return
    function, _ = stages_of(scale)[name]
    try:
        function(stage)
    except Exception as error:
        traceback.print_exc()
        stage.row(error=one_line(error))


def _run_child(name: str, folder: Path, device: str, quick: bool, seconds: float, videos: Sequence[Path]) -> None:
    """Run a stage in a process of its own. Raises RuntimeError where it does not end well and in time."""
    command = [sys.executable, "-m", "bench.gpu", "--stage", name, "--folder", str(folder), "--device", device,
               "--seconds", str(seconds), *(["--quick"] if quick else []), *map(str, videos)]
    with open(folder / f"{name}.log", "w") as log:
        # stages look at the clock themselves; this is for one that hangs
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait(seconds + 15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise RuntimeError(f"took longer than {seconds:.0f} seconds") from None
    if code:
        lines = [line.strip() for line in (folder / f"{name}.log").read_text(errors="replace").splitlines()]
        raise RuntimeError(f"ended with exit code {code}: {next(filter(None, reversed(lines)), '')[:160]}")


def _scale(options: Any) -> Scale:
    return TINY if options.device == "cpu" else QUICK if options.quick else FULL


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """All stages that are asked for; the results so far are saved after each."""
    device = options.device
    scale = _scale(options)
    wanted = set(options.only.split(",")) | {"media"} if options.only else None
    results: dict[str, Any] = {}
    started = time.monotonic()
    for name, (_, seconds) in stages_of(scale).items():
        if wanted is not None and name not in wanted:
            continue
        left = TOTAL_SECONDS - (time.monotonic() - started)
        began = time.monotonic()
        error = None
        if left < 15:
            error = "no time left"
        elif device == "cpu":
            _run_stage(name, folder, device, scale, seconds, options.videos)
        else:
            try:
                _run_child(name, folder, device, options.quick, min(seconds, left), options.videos)
            except RuntimeError as problem:
                error = str(problem)
        rows = Stage(name, folder, device, scale, 0, []).rows_of(name)
        log = folder / f"{name}.log"
        if (error or any(row.get("error") for row in rows)) and log.exists():
            print(log.read_text(errors="replace")[-_LOG_SHOWN:], file=sys.stderr)
        results[name] = {"seconds": time.monotonic() - began, "rows": rows} | ({"error": error} if error else {})
        print(_shown(name, results[name]), flush=True)
        if options.json:
            _save(options, results)
    return results


def _save(options: Any, results: dict[str, Any]) -> None:
    common.save(options.json, "gpu", {"driver": driver(), "targets": targets(results), "stages": results},
                quick=options.quick)


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def _shown(name: str, result: dict[str, Any]) -> str:
    rows = [{key: value for key, value in row.items() if key != "chosen"} for row in result["rows"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [common.table(f"{name} ({result['seconds']:.0f} s)", [{c: row.get(c) for c in columns} for row in rows])]
    lines += [f"  {row['chosen']}" for row in result["rows"] if row.get("chosen")]
    if "error" in result:
        lines.append(f"  ERROR: {result['error']}")
    return "\n".join(lines) + "\n"


def targets(results: dict[str, Any]) -> list[Row]:
    """What was to be reached, and what was."""

    def rows(name: str) -> list[Row]:
        return results.get(name, {}).get("rows", [])

    def pick(name: str, field: str, **labels: Any) -> list[float]:
        return [row[field] for row in rows(name) if row.get(field) is not None
                and all(row.get(key) == value for key, value in labels.items())]

    table: list[Row] = []

    def add(measure: str, values: Sequence[float], target: float, best: Callable[..., float] = max) -> None:
        value = best(values) if values else None
        table.append({"measure": measure, "value": value, "target": target,
                      "met": None if value is None else bool(value >= target)})

    models = [name.removeprefix("encode-") for name in results if name.startswith("encode-")]
    for model, target in zip(models, (0.80, 0.65), strict=False):
        add(f"{model} fp16, share of the best product", pick(f"encode-{model}", "share", side="auto"), target)
    for video in ("480p", "1080p"):
        found = [row for row in rows("decode") if row.get("video") == video and "frames/s" in row]
        most = max((row["lanes"] for row in found if row["side"] == "streamfeat DALI"), default=None)
        ours = [row["frames/s"] for row in found if row["side"] == "streamfeat DALI" and row["lanes"] == most]
        peers = [row["frames/s"] for row in found if not row["side"].startswith("streamfeat") and row["lanes"] == most]
        add(f"decode {video} over the faster peer", [max(ours) / max(peers)] if ours and peers else [], 0.95)
    for model in models:
        add(f"extract, {model}, over the slower of encoder and decoder", pick("extract", "share", model=model), 0.95)
    for model, target in zip(models, (20, 40), strict=False):
        add(f"extract, {model}, over the published way", pick("published", "extract over it", model=model), target)
    for model in models:
        add(f"{model} fp16 against fp32, lowest cosine", pick("precision", "cosine", model=model), 0.9995, min)
    add("fp8 over fp16", pick("fp8", "over fp16"), 1.4)
    add("fp8 against fp16, lowest cosine", pick("fp8", "cosine"), 0.999, min)
    taken = {row["video"]: row["GiB"] for row in rows("memory") if "GiB" in row}
    ratio = [taken["minute"] / taken["hour"]] if len(taken) == 2 and taken["hour"] > 0 else []
    add("memory, a minute over an hour", ratio, 0.95)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("videos", nargs="*", type=Path, help="real videos for the cosines, besides the made ones")
    parser.add_argument("--only", metavar="STAGE,...", help=f"of {', '.join(stages_of(FULL))}")
    parser.add_argument("--device", default="cuda", help=SUPPRESS)
    parser.add_argument("--stage", help=SUPPRESS)
    parser.add_argument("--folder", type=Path, help=SUPPRESS)
    parser.add_argument("--seconds", type=float, help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        scale = _scale(options)
        _run_stage(options.stage, options.folder, options.device, scale, options.seconds, options.videos)
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.exit(1, "bench.gpu: torch sees no CUDA device here\n")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    print(common.table("targets", targets(results)))


if __name__ == "__main__":
    main()
