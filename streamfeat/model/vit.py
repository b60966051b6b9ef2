"""The VideoMAE V2 encoder: a pre-norm vision transformer over space-time patches.

Architecture and parameter names as published in https://github.com/OpenGVLab/VideoMAEv2 (Wang et al., CVPR 2023),
but for one thing: the learnt ``q_bias`` and ``v_bias`` are one ``qkv.bias`` whose middle third is zero.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: frames joined into one token (all published sizes)
TUBELET = 2
#: of every LayerNorm in the published models
LAYER_NORM_EPS = 1e-6


class ModelError(ValueError):
    """A model that cannot be built or run as asked; one line."""


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The numbers that make one member of the family."""

    name: str
    channels: int
    blocks: int
    heads: int
    #: pixels, height and width of a patch
    patch: int
    #: channels between the two layers of an MLP
    hidden: int

    def grid(self, clip_frames: int, image_size: int) -> tuple[int, int, int]:
        """Tokens along time, height and width. Raises ModelError where they do not come out whole."""
        if clip_frames < TUBELET or clip_frames % TUBELET:
            raise ModelError(f"clips of {clip_frames} frames do not fit {self.name}: use a multiple of {TUBELET}")
        if image_size < self.patch or image_size % self.patch:
            below = max(image_size // self.patch, 1) * self.patch
            raise ModelError(f"an image size of {image_size} does not fit {self.name}, whose patches have "
                             f"{self.patch} pixels: use {below} or {below + self.patch}")
        side = image_size // self.patch
        return clip_frames // TUBELET, side, side

    def flops(self, clip_frames: int = 16, image_size: int = 224) -> int:
        """Floating-point operations of the matrix products for one clip, a multiply-add counting as two."""
        time, height, width = self.grid(clip_frames, image_size)
        tokens, c = time * height * width, self.channels
        embed = tokens * c * 3 * TUBELET * self.patch**2
        block = tokens * (4 * c * c + 2 * c * self.hidden) + 2 * tokens**2 * c
        return 2 * (embed + self.blocks * block)


#: ``vit_s`` to ``vit_g`` as published; ``vit_tiny`` is ours, for demos and tests, and has no trained weights
SIZES = {
    size.name: size
    for size in (
        ModelSize("vit_tiny", channels=128, blocks=4, heads=2, patch=16, hidden=512),
        ModelSize("vit_s", channels=384, blocks=12, heads=6, patch=16, hidden=1536),
        ModelSize("vit_b", channels=768, blocks=12, heads=12, patch=16, hidden=3072),
        ModelSize("vit_l", channels=1024, blocks=24, heads=16, patch=16, hidden=4096),
        ModelSize("vit_h", channels=1280, blocks=32, heads=16, patch=16, hidden=5120),
        ModelSize("vit_g", channels=1408, blocks=40, heads=16, patch=14, hidden=6144),
    )
}


def sincos_positions(tokens: int, channels: int) -> Tensor:
    """Fixed sine-cosine positions, float32 ``(tokens, channels)``; sine in even channels, cosine in odd ones.

    One dimension over all tokens, in the order time, height, width (Vaswani et al., 2017, section 3.5).
    """
    frequency = 10000.0 ** (-2 * (np.arange(channels) // 2) / channels)
    angle = np.arange(tokens)[:, None] * frequency
    return torch.from_numpy(np.where(np.arange(channels) % 2, np.cos(angle), np.sin(angle)).astype(np.float32))


class PatchEmbed(nn.Module):
    """Space-time patches to tokens: the published ``Conv3d``, whose stride is its kernel, as one matrix product."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        kernel = (TUBELET, size.patch, size.patch)
        self.proj = nn.Conv3d(3, size.channels, kernel_size=kernel, stride=kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return F.linear(self.patches(clips), self.proj.weight.flatten(1), self.proj.bias)

    def patches(self, clips: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` to ``(B, tokens, 3 * tubelet * patch**2)``."""
        batch, colours, frames, height, width = clips.shape
        _, _, t, p, q = self.proj.weight.shape
        split = clips.reshape(batch, colours, frames // t, t, height // p, p, width // q, q)
        return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, colours * t * p * q)


class Attention(nn.Module):
    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.channels, 3 * size.channels)
        self.proj = nn.Linear(size.channels, size.channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))


class Mlp(nn.Module):
    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.channels, size.hidden)
        self.fc2 = nn.Linear(size.hidden, size.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.channels, eps=LAYER_NORM_EPS)
        self.attn = Attention(size)
        self.norm2 = nn.LayerNorm(size.channels, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoTransformer(nn.Module):
    """The encoder for clips of one length and one image size.

    ``forward_features`` gives the tokens of the last block, ``forward`` their mean after the final norm.

    Args:
        size: which member of the family.
        clip_frames: frames in a clip, a multiple of 2.
        image_size: pixels, height and width, a multiple of the patch.
        final_norm: whether there is a final norm (``fc_norm``); without it ``forward`` gives the plain mean.

    Raises ModelError where frames or pixels do not divide into tokens.
    """

    num_classes = 0

    def __init__(
        self, size: ModelSize, clip_frames: int = 16, image_size: int = 224, *, final_norm: bool = True
    ) -> None:
        super().__init__()
        self.size = size
        self.num_features = size.channels
        tokens = int(np.prod(size.grid(clip_frames, image_size)))
        self.clip_shape = (3, clip_frames, image_size, image_size)
        self.patch_embed = PatchEmbed(size)
        self.register_buffer("positions", sincos_positions(tokens, size.channels), persistent=False)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.fc_norm = nn.LayerNorm(size.channels, eps=LAYER_NORM_EPS) if final_norm else nn.Identity()

    def forward_features(self, clips: Tensor) -> Tensor:
        """Normalised clips ``(B, 3, T, S, S)`` to the tokens of the last block ``(B, tokens, channels)``."""
        x = self.patch_embed(clips) + self.positions
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised clips ``(B, 3, T, S, S)`` to features ``(B, channels)``."""
        return self.fc_norm(self.forward_features(clips).mean(1))


def parameter_shapes(size: ModelSize, *, final_norm: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a ``VideoTransformer``, in its order."""
    with torch.device("meta"):
        model = VideoTransformer(size, TUBELET, size.patch, final_norm=final_norm)
    return {name: tuple(value.shape) for name, value in model.named_parameters()}
