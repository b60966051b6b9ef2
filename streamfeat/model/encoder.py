"""Clips to features: device, precision, batch and pooling around the network. Knows neither videos nor recipes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamfeat.model import cpu
from streamfeat.model import weights as weights_module
from streamfeat.model.vit import LAYER_NORM_EPS, ModelError, ModelSize, VideoTransformer
from streamfeat.model.weights import DEFAULT, Weights, WeightsError

__all__ = ["DEFAULT", "PRECISIONS", "STATISTICS", "Encoder", "ModelError", "WeightsError", "load_encoder"]

STATISTICS = ("mean", "std", "max", "fc_norm")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: clips a batch on a GPU never exceeds; the products are large enough long before
_MOST_CLIPS_ON_GPU = 64
#: of the free memory of a GPU, the share that a batch may take; the rest is the decoders'
_SHARE_OF_GPU_MEMORY = 0.5


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
    seed: int = 0,
) -> Encoder:
    """Load weights and make them an encoder.

    Args:
        weights: path, Hugging Face id or ``random``; None: the published weights of ``size``, of vit_b without.
        size: ``vit_tiny``, ``vit_s``, ``vit_b``, ``vit_l``, ``vit_h`` or ``vit_g``; None: what the weights are.
        device: ``auto`` (CUDA where there is some), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp16 on CUDA, bf16 on a CPU that gains by it, else fp32.
        stats: out of ``STATISTICS``, in the order wanted.
        image_size: pixels, height and width of clips.
        clip_frames: frames in a clip.
        batch_size: most clips run at once, or ``auto``.
        seed: of ``random`` weights.

    Raises WeightsError on the weights, ModelError on all else that cannot be.
    """
    device = _choose_device(device)
    precision = _choose_precision(precision, device)
    if not stats or len(set(stats)) < len(stats) or not set(stats) <= set(STATISTICS):
        raise ModelError(f"statistics must be different names out of {', '.join(STATISTICS)}, not {', '.join(stats)}")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ModelError(f"the batch size must be a number from 1, or auto, not {batch_size}")
    loaded = weights_module.load(weights, size, seed=seed)
    loaded.size.grid(clip_frames, image_size)
    if "fc_norm" in stats and not loaded.final_norm:
        raise WeightsError(f"{loaded.source}: has no final norm, so the statistic fc_norm cannot be had; use mean,"
                           f" or weights that have it")
    return Encoder(loaded, device, precision, tuple(stats), image_size, clip_frames, batch_size)


class Encoder:
    """Normalised clips in, one row of statistics a clip out. Made by ``load_encoder``.

    Attributes:
        size: the model's numbers.
        identity: ``{"size", "source", "sha256"}`` of the weights.
        device: where it runs.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        input_dtype: what clips are best handed over in; others are converted.
        statistics: names, in the order of the rows.
        row_shape: of one clip's features: ``(statistics, channels)``, or ``(channels,)`` for a single one.
        batch_size: most clips run at once; halved when a GPU runs out of memory.
        exact_reruns: batches computed again in fp32 because a feature was not finite.
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
        self._workers = cpu.Workers() if device.type == "cpu" else None
        self._forward = self._build(self.input_dtype)
        self._forward_exact: Callable[[Tensor], Tensor] | None = None
        self.exact_reruns = 0
        self.batch_size = self._choose_batch_size() if batch_size == "auto" else batch_size

    def encode(self, clips: Tensor) -> np.ndarray:
        """Features of normalised clips.

        Args:
            clips: floating point, ``(B, 3, T, S, S)``, any B, on any device.

        Returns float32 ``(B, *row_shape)``. Rows that are not finite even in fp32 hold NaN throughout.
        Raises ModelError on another shape, or when a GPU's memory does not hold a single clip.
        """
        return self.submit(clips).result()

    def submit(self, clips: Tensor) -> Pending:
        """Start encoding as ``encode`` does; on CUDA without waiting for the device."""
        if clips.ndim != 5 or tuple(clips.shape[1:]) != self.clip_shape or not clips.is_floating_point():
            raise ModelError(f"clips must be floating point (B, {', '.join(map(str, self.clip_shape))}), not"
                             f" {clips.dtype} {tuple(clips.shape)}")
        parts = []
        done = 0
        while done < len(clips):
            part = clips[done : done + self.batch_size]
            try:
                parts.append(_Part.start(self._forward, part.to(self.device, self.input_dtype, non_blocking=True)))
            except torch.OutOfMemoryError:
                self._shrink()
                continue
            done += len(part)
        return Pending(self, clips, parts)

    def _shrink(self) -> None:
        if self.batch_size == 1:
            raise ModelError(f"{self.device} has not enough free memory for one clip of {self.size.name} in"
                             f" {self.precision}; free some, or use a smaller model") from None
        self.batch_size //= 2
        torch.cuda.empty_cache()

    def _encode_exactly(self, clips: Tensor) -> Tensor:
        self.exact_reruns += 1
        if self._forward_exact is None:
            self._forward_exact = self._forward if self.precision == "fp32" else self._build(torch.float32)
        rows = [self._forward_exact(clip.to(self.device, torch.float32)).cpu() for clip in clips.split(1)]
        return torch.cat(rows)

    def _build(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """``(B, 3, T, S, S)`` of ``dtype`` to float32 rows ``(B, *row_shape)``, both on the device."""
        norm = [self._weights.state_dict.get(f"fc_norm.{name}") for name in ("weight", "bias")]
        norm = [None if value is None else value.to(self.device) for value in norm]
        features = self._build_features(dtype)

        def forward(clips: Tensor) -> Tensor:
            with torch.inference_mode():
                return pool(features(clips), self.statistics, *norm).view(-1, *self.row_shape)

        return forward if self._workers is None else self._workers.spread(forward)

    def _build_features(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        with torch.device("meta"):
            model = VideoTransformer(
                self.size, *self.clip_shape[1:3], final_norm=self._weights.final_norm
            ).requires_grad_(False)
        # Copies: on a CPU, pages of the mapped file are slower, and gone if someone writes to the file meanwhile.
        model.load_state_dict(
            {name: value.to(self.device, dtype, copy=True) for name, value in self._weights.state_dict.items()},
            assign=True,
        )
        model = model.to(self.device, dtype).eval()
        if self.device.type == "cpu":
            return cpu.optimise(model)
        return model.forward_features

    def _choose_batch_size(self) -> int:
        if self._workers is not None:
            return self._workers.count
        tokens = math.prod(self.size.grid(*self.clip_shape[1:3]))
        # The widest moment of a block: residual, normed input, MLP before and after GELU.
        clip_bytes = tokens * 2 * (self.size.channels + self.size.hidden) * self.input_dtype.itemsize
        free, _ = torch.cuda.mem_get_info(self.device)
        fit = int(free * _SHARE_OF_GPU_MEMORY // clip_bytes)
        return max(1, min(_MOST_CLIPS_ON_GPU, 1 << fit.bit_length() >> 1))


@dataclasses.dataclass
class _Part:
    """Rows of one batch, on their way to the host."""

    rows: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def start(cls, forward: Callable[[Tensor], Tensor], clips: Tensor) -> _Part:
        rows = forward(clips)
        if rows.device.type != "cuda":
            return cls(rows, None)
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(rows.device))
        return cls(host, arrived)

    def wait(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.rows


class Pending:
    """Features that are being computed. Holds the clips until they are done, for a rerun in fp32."""

    def __init__(self, encoder: Encoder, clips: Tensor, parts: list[_Part]) -> None:
        self._encoder, self._clips, self._parts = encoder, clips, parts

    def result(self) -> np.ndarray:
        """Wait, and return what ``Encoder.encode`` does."""
        rows = torch.cat([part.wait() for part in self._parts]) if self._parts else self._clips.new_empty(0)
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


def _choose_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ModelError(f"no device named {device!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"cannot run on {device}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or"
                         f" cpu, or install the driver and a CUDA build of torch")
    return device


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision not in ("auto", *PRECISIONS):
        raise ModelError(f"no precision named {precision!r}; there are auto, {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fp16"
    return "bf16" if cpu.gains_by_bf16() else "fp32"
