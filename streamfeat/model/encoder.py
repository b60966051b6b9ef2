"""Clips to features: device, precision, batch and pooling around the network. Knows neither videos nor recipes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamfeat.model import cpu, cuda, fp8, int8
from streamfeat.model import weights as weights_module
from streamfeat.model.vit import LAYER_NORM_EPS, ModelError, ModelSize, VideoTransformer
from streamfeat.model.weights import DEFAULT, Weights, WeightsError
from streamfeat.text import first_line

__all__ = ["DEFAULT", "PRECISIONS", "STATISTICS", "Encoder", "ModelError", "WeightsError", "load_encoder"]

STATISTICS = ("mean", "std", "max", "fc_norm")
#: name -> type of everything but, in fp8 and int8, the four products of each block
PRECISIONS = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float16, "int8": torch.float32,
}
#: precisions that are checked on the first batch, and the one whose features they must come close to
_REFERENCES = {"fp8": "fp16", "int8": "fp32"}
#: cosine to those features under which they are refused
LOWEST_COSINE = 0.999


def load_encoder(
    weights: str | None = None,
    *,
    size: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    stats: Sequence[str] = ("mean", "std", "max"),
    image_size: int = 224,
    clip_frames: int = 16,
    batch_size: int | str = "auto",
    engine: str = "auto",
    seed: int = 0,
) -> Encoder:
    """Load weights and make them an encoder.

    Args:
        weights: path, Hugging Face id or ``random``; None: the published weights of ``size``, of vit_b without.
        size: ``vit_tiny``, ``vit_s``, ``vit_b``, ``vit_l``, ``vit_h`` or ``vit_g``; None: what the weights are.
        device: ``auto`` (CUDA where there is some), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``fp32``, ``bf16``, ``fp16``, ``fp8`` (GPUs of Ada and later), ``int8`` (CPUs), or ``auto``: fp16 on
            CUDA, bf16 on a CPU that gains by it, else fp32.
        stats: out of ``STATISTICS``, in the order wanted.
        image_size: pixels, height and width of clips.
        clip_frames: frames in a clip.
        batch_size: most clips run at once, or ``auto``.
        engine: on CUDA, one of ``cuda.ENGINES``; what does not work here is left out. ``auto``: ``graph``, in fp8
            ``compile``, without which making its numbers small would take longer than its products save.
        seed: of ``random`` weights.

    Raises WeightsError on the weights, ModelError on all else that cannot be.
    """
    device, why_device = _choose_device(device)
    precision, why_precision = _choose_precision(precision, device)
    if not stats or len(set(stats)) < len(stats) or not set(stats) <= set(STATISTICS):
        raise ModelError(f"statistics must be different names out of {', '.join(STATISTICS)}, not {', '.join(stats)}")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ModelError(f"the batch size must be a number from 1, or auto, not {batch_size}")
    loaded = weights_module.load(weights, size, seed=seed)
    loaded.size.grid(clip_frames, image_size)
    if "fc_norm" in stats and not loaded.final_norm:
        raise WeightsError(f"{loaded.source}: has no final norm, so the statistic fc_norm cannot be had; use mean,"
                           f" or weights that have it")
    if engine != "auto" and engine not in cuda.ENGINES:
        raise ModelError(f"no engine named {engine!r}; there are auto, {', '.join(cuda.ENGINES)}")
    if engine == "auto":
        engine = "compile" if precision == "fp8" else "graph"
    try:
        encoder = Encoder(loaded, device, precision, tuple(stats), image_size, clip_frames, batch_size, engine)
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        # torch.OutOfMemoryError is one too
        raise ModelError(f"{loaded.size.name} in {precision} does not run on {device}: {first_line(error)};"
                         f" free some of its memory, use another device, or ask streamfeat doctor") from error
    encoder.why |= {"device": why_device, "precision": why_precision}
    return encoder


class Encoder:
    """Normalised clips in, one row of statistics a clip out. Made by ``load_encoder``.

    Attributes:
        size: the model's numbers.
        identity: ``{"size", "source", "sha256"}`` of the weights.
        device: where it runs.
        precision: ``fp32``, ``bf16``, ``fp16``, ``fp8`` or ``int8``.
        input_dtype: what clips are best handed over in; others are converted.
        statistics: names, in the order of the rows.
        row_shape: of one clip's features: ``(statistics, channels)``, or ``(channels,)`` for a single one.
        batch_size: most clips run at once; halved when a GPU runs out of memory.
        exact_reruns: batches computed again in fp32 because a feature was not finite.
        ahead: batches that are best submitted before the result of the first is asked for. Their clips must stay
            unchanged until then.
        why: for people: reasons for ``device``, ``precision`` and ``batch_size``.
    """

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        precision: str,
        statistics: tuple[str, ...],
        image_size: int,
        clip_frames: int,
        batch_size: int | str,
        engine: str,
    ) -> None:
        self.size: ModelSize = weights.size
        self.identity = weights.identity
        self.device = device
        self.precision = precision
        self.input_dtype = PRECISIONS[precision]
        self.statistics = statistics
        channels = (self.size.channels,)
        self.row_shape: tuple[int, ...] = channels if len(statistics) == 1 else (len(statistics), *channels)
        self.clip_shape = (3, clip_frames, image_size, image_size)
        # Memory-mapped from the file, so keeping them for a rerun in fp32 takes no memory of its own.
        self._weights = weights
        self._workers = cpu.workers_for(int8=precision == "int8") if device.type == "cpu" else None
        self.ahead = 1
        self.why = {"device": "", "precision": "", "batch_size": "asked for"}
        self._forward_exact: Callable[[Tensor], Tensor] | None = None
        self.exact_reruns = 0
        self._is_checked = precision not in _REFERENCES
        if self._workers is None:
            self._ways, self._capture = self._ways_on_cuda(engine)
        # after the weights, which take their share of the memory
        self.batch_size = self._choose_batch_size() if batch_size == "auto" else batch_size
        if self._workers is None:
            self._forward = self._runner()
            # what loading left to do was asked for on this stream; another may be current when clips come
            torch.cuda.synchronize(device)
        else:
            self._forward = self._pooled(cpu.optimise(self._network(self.input_dtype), int8=precision == "int8"))

    def close(self) -> None:
        """End the threads of a CPU: what was submitted and not begun is dropped, and nothing can be submitted."""
        if self._workers is not None:
            self._workers.close()

    def encode(self, clips: Tensor) -> np.ndarray:
        """Features of normalised clips.

        Args:
            clips: floating point, ``(B, 3, T, S, S)``, any B, on any device.

        Returns float32 ``(B, *row_shape)``. Rows that are not finite even in fp32 hold NaN throughout.
        Raises ModelError on another shape, when a GPU's memory does not hold a single clip, or when the features of
        the first batch in fp8 or int8 are too far from those in fp16 or fp32.
        """
        return self.submit(clips).result()

    @property
    def how(self) -> str:
        """For people: by what means the network runs, on CUDA and in int8."""
        if self.precision == "int8":
            return int8.means()
        return getattr(self._forward, "how", "")

    def own_stream(self) -> contextlib.AbstractContextManager[object]:
        """On CUDA a stream for whoever submits: torch's default one would have other libraries' work wait for it."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.device))

    def submit(self, clips: Tensor) -> Pending:
        """Start encoding as ``encode`` does, without waiting for it.

        ``Pending.result`` waits, and raises what went wrong meanwhile. But the very first batch in fp8 or int8 is
        computed, and checked, before this returns.
        """
        if clips.ndim != 5 or tuple(clips.shape[1:]) != self.clip_shape or not clips.is_floating_point():
            raise ModelError(f"clips must be floating point (B, {', '.join(map(str, self.clip_shape))}), not"
                             f" {clips.dtype} {tuple(clips.shape)}")
        parts = []
        done = 0
        while done < len(clips):
            part = clips[done : done + self.batch_size]
            try:
                parts.append(self._start(part))
                done += len(part)
                continue
            except torch.OutOfMemoryError:  # of a GPU
                pass  # its traceback holds what was computed so far, and goes only with the end of this block
            torch.cuda.synchronize(self.device)  # earlier parts may still be in the graph that goes now
            self._forward = None
            self._halve_batch()
            self._forward = self._runner()
        if parts and not self._is_checked:
            rows = parts[0]()
            self._check_against_reference(clips[: len(rows)], rows)
            parts[0] = lambda: rows
        return Pending(self, clips, parts)

    def _start(self, clips: Tensor) -> Callable[[], Tensor]:
        """Start computing a batch at most; returns a function that waits for its rows."""
        clips = clips.to(self.device, self.input_dtype, non_blocking=True)
        if self._workers is not None:
            return self._workers.start(self._forward, clips)
        return cuda.send(self._forward(clips))

    def _halve_batch(self) -> None:
        if self.batch_size == 1:
            raise ModelError(f"{self.device} has not enough free memory for one clip of {self.size.name} in"
                             f" {self.precision}; free some, or use a smaller model")
        self.batch_size //= 2
        self.why["batch_size"] = "halved until it fitted the memory"
        torch.cuda.empty_cache()

    def _runner(self) -> cuda.Runner:
        while True:
            try:
                return cuda.Runner(
                    self._ways, capture=self._capture, batch_size=self.batch_size, clip_shape=self.clip_shape,
                    dtype=self.input_dtype, device=self.device,
                )
            except torch.OutOfMemoryError:
                pass
            self._halve_batch()

    def _check_against_reference(self, clips: Tensor, rows: Tensor) -> None:
        """Raises ModelError where ``rows`` of ``clips`` are too far from those in the precision of reference."""
        name = _REFERENCES[self.precision]
        wanted = self._one_by_one(self._build(PRECISIONS[name]), clips, PRECISIONS[name])
        cosines = F.cosine_similarity(rows, wanted, dim=-1)
        # what overflows has nothing to be compared with: it is computed again in fp32
        cosine = cosines.nan_to_num(nan=1.0).min().item()
        if cosine < LOWEST_COSINE:
            raise ModelError(f"{self.precision} is too coarse for these weights and clips: the cosine to features in"
                             f" {name} falls to {cosine:.5f}, under {LOWEST_COSINE}; use {name}")
        self._is_checked = True

    def _encode_exactly(self, clips: Tensor) -> Tensor:
        self.exact_reruns += 1
        if self._forward_exact is None:
            self._forward_exact = self._forward if self.precision == "fp32" else self._build(torch.float32)
        return self._one_by_one(self._forward_exact, clips, torch.float32)

    def _one_by_one(self, forward: Callable[[Tensor], Tensor], clips: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``clips`` in ``dtype``, on the CPU. On a GPU clip by clip, which takes little of its memory."""
        if self._workers is not None:
            return self._workers.start(forward, clips.to(self.device, dtype))()
        return torch.cat([forward(clip.to(self.device, dtype)).cpu() for clip in clips.split(1)])

    def _build(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """``(B, 3, T, S, S)`` of ``dtype`` to float32 rows ``(B, *row_shape)``, both on the device."""
        return self._pooled(self._build_features(dtype))

    def _pooled(self, features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``features`` and the statistics of what it gives."""
        norm = [self._weights.state_dict.get(f"fc_norm.{name}") for name in ("weight", "bias")]
        norm = [None if value is None else value.to(self.device) for value in norm]

        def forward(clips: Tensor) -> Tensor:
            with torch.inference_mode():
                return pool(features(clips), self.statistics, *norm).view(-1, *self.row_shape)

        return forward

    def _ways_on_cuda(self, engine: str) -> tuple[list[tuple[str, Callable[[Tensor], Tensor]]], bool]:
        """Ways to run the network, best first, with their names; and whether to capture the one that works."""
        model = self._network(self.input_dtype)
        dtype = self.input_dtype
        if self.precision == "fp8":
            model, dtype = fp8.convert(model), torch.bfloat16
        heads, tokens = self.size.heads, math.prod(self.size.grid(*self.clip_shape[1:3]))
        backend = cuda.attention_backend(self.device, dtype, heads, self.size.channels // heads, tokens)
        attention = f"{backend.name.lower().replace('_', ' ')}" if backend is not None else ""
        ways = []
        for compiled in (True, False) if engine == "compile" else (False,):
            name = ", ".join(part for part in ("torch.compile" if compiled else "", attention) if part)
            ways.append((name, self._pooled(cuda.features(model, compiled=compiled, backend=backend))))
        return ways, engine != "eager"

    def _build_features(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        model = self._network(dtype)
        return model.forward_features if self._workers is None else cpu.optimise(model)

    def _network(self, dtype: torch.dtype) -> VideoTransformer:
        with torch.device("meta"):
            model = VideoTransformer(
                self.size, *self.clip_shape[1:3], final_norm=self._weights.final_norm
            ).requires_grad_(False)
        # Copies: on a CPU, pages of the mapped file are slower, and gone if someone writes to the file meanwhile.
        model.load_state_dict(
            {name: value.to(self.device, dtype, copy=True) for name, value in self._weights.state_dict.items()},
            assign=True,
        )
        return model.to(self.device, dtype).eval()

    def _choose_batch_size(self) -> int:
        if self._workers is not None:
            self.why["batch_size"] = "a clip for each thread"
            return self._workers.count
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        free, _ = torch.cuda.mem_get_info(self.device)
        self.why["batch_size"] = f"fills {processors} multiprocessors and fits {free / 2**30:.0f} GiB"
        tokens = math.prod(self.size.grid(*self.clip_shape[1:3]))
        itemsize = self.input_dtype.itemsize
        return cuda.batch_size(self.size, tokens, math.prod(self.clip_shape) * itemsize, itemsize, processors, free)


class Pending:
    """Features that are being computed. Reads the clips again where they are not finite, for a rerun in fp32."""

    def __init__(self, encoder: Encoder, clips: Tensor, parts: list[Callable[[], Tensor]]) -> None:
        self._encoder, self._clips, self._parts = encoder, clips, parts

    def result(self) -> np.ndarray:
        """Wait, and return what ``Encoder.encode`` does."""
        rows = torch.cat([wait() for wait in self._parts]) if self._parts else self._clips.new_empty(0)
        rows = rows.float().view(-1, *self._encoder.row_shape)
        broken = ~torch.isfinite(rows).flatten(1).all(1)
        if broken.any():
            rows[broken] = self._encoder._encode_exactly(self._clips[broken.to(self._clips.device)])
            rows[~torch.isfinite(rows).flatten(1).all(1)] = torch.nan
        return rows.numpy()


def pool(tokens: Tensor, statistics: Sequence[str], norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
    """Tokens ``(B, N, C)`` to float32 ``(B, len(statistics), C)``, accumulated in float32.

    ``mean``, ``std`` (unbiased) and ``max`` over the tokens as they leave the last block, as in Fed_WSVAD's feature
    extraction; ``fc_norm`` is their mean after the final norm, as in VideoMAE V2's extract_tad_feature.py.
    """
    tokens = tokens.float()
    mean = tokens.mean(1)
    rows = {
        "mean": lambda: mean,
        # Two passes: as exact as torch.std, and a tenth of its time along this dimension.
        "std": lambda: (tokens - mean[:, None]).square_().sum(1).div_(tokens.shape[1] - 1).sqrt_(),
        "max": lambda: tokens.amax(1),
        "fc_norm": lambda: F.layer_norm(mean, mean.shape[-1:], norm_weight, norm_bias, LAYER_NORM_EPS),
    }
    return torch.stack([rows[name]() for name in statistics], 1)


def _choose_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device, with its index, and why it is this one."""
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu"), "torch sees no CUDA device"
        device = "cuda"
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ModelError(f"no device named {device!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"cannot run on {device}; use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device, "asked for"
    if (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or"
                         f" cpu, or install the driver and a CUDA build of torch")
    try:
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return device, torch.cuda.get_device_name(device)
    except RuntimeError as error:  # the first that asks anything of the driver
        raise ModelError(f"{device} does not work: {first_line(error)}; ask streamfeat doctor, or use --device cpu"
                         ) from error


def _choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """The precision, and why it is this one."""
    if precision not in ("auto", *PRECISIONS):
        raise ModelError(f"no precision named {precision!r}; there are auto, {', '.join(PRECISIONS)}")
    unavailable = {"fp8": fp8.unavailable, "int8": int8.unavailable}.get(precision)
    if unavailable and (reason := unavailable(device)):
        raise ModelError(f"--precision {precision} cannot be used here: {reason}; leave it out")
    if precision != "auto":
        return precision, "asked for"
    if device.type == "cuda":
        return "fp16", "what a GPU is fast in"
    if cpu.gains_by_bf16():
        return "bf16", "this processor is fast in it"
    faster = "" if int8.unavailable(device) else "; int8 would be faster"
    return "fp32", f"this processor gains nothing by bf16{faster}"
