"""The four products of each block in 8-bit floating point (e4m3), on GPUs whose matrix units have it.

Weights are scaled by output channel, once; activations by token, as they come, so that a clip's features do not depend
on its company. Products accumulate in the matrix unit and come back in bfloat16; the sum of the blocks, norms and the
patches stay in the model's own precision. Twice the speed of fp16 is the hardware's; that features stay what they are
is checked on the first batch (``Encoder``).

What rounding the weights does to all tokens alike would survive the mean over them, and be nine tenths of the error of
the features. It is put right in the bias (Nagel et al., "Data-free quantization through weight equalization and bias
correction", ICCV 2019, section 4.2), with mean activations of a clip that is always the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from streamfeat.model.vit import Block, VideoTransformer
from streamfeat.text import first_line

_E4M3 = torch.float8_e4m3fn
#: the largest number of e4m3
_LARGEST = 448.0
#: keeps the scale of a row of zeros from being zero
_SMALLEST_AMAX = 1e-12
#: compute capability of Ada, the first with these matrix units
_CAPABILITY = (8, 9)
#: relative error of a product that works: it accumulates in fewer bits than fp32 has, and is rounded to bfloat16
_PRODUCT_ERROR = 1e-2


def unavailable(device: torch.device) -> str | None:
    """Why ``device`` cannot run this, in one line; None if it can."""
    if device.type != "cuda":
        return f"{device} has no fp8 products; it needs an NVIDIA GPU of Ada, Hopper or Blackwell"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no fp8 products; it needs Ada, Hopper or Blackwell"
    if not hasattr(torch, "_scaled_mm"):
        return f"torch {torch.__version__} has no scaled products"
    if capability == _CAPABILITY and TorchVersion(torch.__version__) < (2, 12):
        # PyTorch issue 177651: a product there may hang, or use what is not ready
        return f"torch {torch.__version__} prepares fp8 products of Ada on another stream than theirs; it needs 2.12"
    return _refused(device)


def _refused(device: torch.device) -> str | None:
    """Why torch's scaled product does not work on ``device``: its kernels depend on how torch was built."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 256, generator=generator).to(device) for n in (300, 512))
    (rows, scale), (weight, weight_scale) = quantise(x), quantise(weight)
    bias = torch.randn(512, generator=generator).to(device, torch.bfloat16)
    wanted = (rows.float() * scale) @ (weight.float() * weight_scale).t() + bias.float()
    try:
        found = scaled_product(rows, scale, weight, weight_scale.view(1, -1), bias).float()
    except RuntimeError as error:
        return f"torch {torch.__version__} has no fp8 products with a scale for each row here ({first_line(error)})"
    if not (found - wanted).norm() < _PRODUCT_ERROR * wanted.norm():
        return f"torch {torch.__version__} gets fp8 products with a scale for each row wrong here"
    return None


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(n, k)`` as e4m3 and what to multiply each with, float32 ``(n, 1)``, so that its largest is 448.

    A row that is not finite comes out as NaN.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST_AMAX) / _LARGEST
    return (x / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3), scale


def scaled_product(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """``(x * x_scale) @ (weight * weight_scale).T + bias`` in bfloat16.

    Args:
        x: e4m3 ``(n, k)``.
        x_scale: float32 ``(n, 1)``.
        weight: e4m3 ``(m, k)``.
        weight_scale: float32 ``(1, m)``.
        bias: bfloat16 ``(m,)``.
    """
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


class Fp8Linear(nn.Module):
    """A linear layer in e4m3: any float ``(..., k)`` in, bfloat16 ``(..., m)`` out.

    Args:
        layer: what it stands for.
        mean: of the layer's inputs, float32 ``(k,)``: for it the result is exact.
    """

    def __init__(self, layer: nn.Linear, mean: Tensor) -> None:
        super().__init__()
        weight, scale = quantise(layer.weight)
        rounded_off = layer.weight.float() - weight.float() * scale
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.view(1, -1))
        self.register_buffer("bias", (layer.bias.float() + rounded_off @ mean).to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise(x.reshape(-1, x.shape[-1]))
        product = scaled_product(rows, scale, self.weight, self.scale, self.bias)
        return product.view(*x.shape[:-1], -1)


class Fp8Block(nn.Module):
    """A ``Block`` with its four linear layers in e4m3 and its attention in bfloat16."""

    def __init__(self, block: Block, means: dict[nn.Module, Tensor]) -> None:
        super().__init__()
        self.heads = block.attn.heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj, self.fc1, self.fc2 = (Fp8Linear(layer, means[layer]) for layer in _layers(block))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, channels)
        x = (x + self.proj(mixed)).to(x.dtype)
        return (x + self.fc2(F.gelu(self.fc1(self.norm2(x))))).to(x.dtype)


def convert(model: VideoTransformer) -> VideoTransformer:
    """Put the linear layers of every block of ``model`` into e4m3, in place."""
    means = _mean_inputs(model)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = Fp8Block(block, means)
    return model


def _layers(block: Block) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


@torch.no_grad()
def _mean_inputs(model: VideoTransformer) -> dict[nn.Module, Tensor]:
    """Float32 means over tokens of what goes into each linear layer, for a clip of slowly moving blots of colour."""
    means: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean = inputs[0].flatten(0, -2).float().mean(0)
        # where this clip overflows there is nothing to correct with
        means[layer] = mean if mean.isfinite().all() else torch.zeros_like(mean)

    hooks = [layer.register_forward_pre_hook(note) for block in model.blocks for layer in _layers(block)]
    _, *shape = model.clip_shape
    blots = torch.rand(1, 3, 4, 14, 14, generator=torch.Generator().manual_seed(0))
    clip = F.interpolate(blots, size=shape, mode="trilinear", align_corners=False).mul(2).sub(1)
    model.forward_features(clip.to(model.positions))
    for hook in hooks:
        hook.remove()
    return means
