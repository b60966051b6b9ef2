"""The four products of each block in 8-bit integers through torch, where ``streamfeat.model.kernels`` cannot be had.

Weights are scaled by output channel, once; activations by tokens that are neighbours, as they come. Products
are exact (32-bit sums); attention, norms and the sum of the blocks stay in fp32, and so do biases and GELU, which are
part of the same pass. That features stay what they are is checked on the first batch (``Encoder``).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from streamfeat.model import kernels


def unavailable(device: torch.device) -> str | None:
    """Why ``device`` cannot run models in int8 by either way, in one line; None if it can."""
    if device.type != "cpu":
        return f"{device} has no need of it; it is made for CPUs"
    if kernels.unavailable() is not None and not _works():
        return "this processor, or this torch, has no exact products of 8-bit integers"
    return None


def means() -> str:
    """For people: by which of the two ways models run in int8 here."""
    reason = kernels.unavailable()
    return f"torch, not compiled kernels ({reason})" if reason else "compiled kernels"


class Int8Linear:
    """A linear layer in 8-bit integers; fp32 in, fp32 out. Takes over the layer's weight.

    These are the operations that torch.compile emits for quantised models on CPUs, called directly.
    """

    #: tokens that share a scale: as few as keep the products at full speed, since one outlier coarsens all of them
    most_rows = 224

    def __init__(self, layer: nn.Linear) -> None:
        integers, self._scales = kernels.quantise_weight(layer.weight)
        self._zeros = torch.zeros(len(integers), dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self._bias = layer.bias
        layer.weight = None  # frees the weight in fp32

    def apply(self, x: Tensor, out: Tensor) -> Tensor:
        return self._product(x, "none")

    def apply_gelu(self, x: Tensor, out: Tensor) -> Tensor:
        return self._product(x, "gelu")

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        residual.add_(self._product(x, "none"))

    def _product(self, x: Tensor, then: str) -> Tensor:
        integers, scale, zero = quantise(x)
        return torch.ops.onednn.qlinear_pointwise(
            integers, scale, zero, self._weight, self._scales, self._zeros, self._bias,
            1.0, 0, torch.float32, then, [], "none",
        )


def quantise(x: Tensor) -> tuple[Tensor, float, int]:
    """``x`` as ``scale * (integers - zero)``: uint8 of its shape, scale, zero. Not finite: the scale is NaN."""
    lowest, highest = min(x.amin().item(), 0.0), max(x.amax().item(), 0.0)
    scale = (highest - lowest) / 255 or 1.0
    if not math.isfinite(scale):
        return torch.zeros(x.shape, dtype=torch.uint8), math.nan, 0
    zero = round(-lowest / scale)
    quantised = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    # int_repr() would copy
    return torch.empty(0, dtype=torch.uint8).set_(quantised.untyped_storage(), 0, quantised.shape), scale, zero


@functools.cache
def _works() -> bool:
    """Whether this torch has the private operations, and their sums are exact.

    On x86 without VNNI pairs of products are added in 16 bits, which the largest values here exceed.
    """
    layer = nn.Linear(64, 32)
    with torch.inference_mode():
        layer.weight.fill_(1.0).div_(127)
        layer.bias.fill_(0.5)
        x = torch.full((48, 64), 255.0)
        x[0] = 0.0
        wanted = layer(x)
        try:
            made = Int8Linear(layer)
            found = made.apply(x, x), made.apply_gelu(x, x)
        except (AttributeError, RuntimeError, TypeError):
            return False
        wanted = wanted, nn.functional.gelu(wanted)
        return all(torch.allclose(f, w, rtol=1e-4, atol=1e-4) for f, w in zip(found, wanted, strict=True))
