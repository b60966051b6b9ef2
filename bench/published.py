"""What streamfeat is measured against: the published model written plainly, and transformers' VideoMAE.

Both run under ``no_grad``: torch.compile with frozen weights takes no inference mode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from streamfeat.model.vit import SIZES, sincos_positions


def write_checkpoint(size: str, path: Path, seed: int = 0) -> None:
    """Random weights of ``size`` as a published checkpoint, spread so that features differ from clip to clip."""
    numbers = SIZES[size]
    c, hidden, generator = numbers.channels, numbers.hidden, torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator) * (1.5 / fan_in**0.5)

    def bias(length: int = c) -> torch.Tensor:
        return 0.05 * torch.randn(length, generator=generator)

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(c, generator=generator)

    state = {"patch_embed.proj.weight": weight(c, 3, 2, numbers.patch, numbers.patch), "patch_embed.proj.bias": bias()}
    for index in range(numbers.blocks):
        state |= {
            f"blocks.{index}.{name}": value
            for name, value in {
                "norm1.weight": norm(), "norm1.bias": bias(), "attn.q_bias": bias(), "attn.v_bias": bias(),
                "attn.qkv.weight": weight(3 * c, c), "attn.proj.weight": weight(c, c), "attn.proj.bias": bias(),
                "norm2.weight": norm(), "norm2.bias": bias(), "mlp.fc1.weight": weight(hidden, c),
                "mlp.fc1.bias": bias(hidden), "mlp.fc2.weight": weight(c, hidden), "mlp.fc2.bias": bias(),
            }.items()
        }  # fmt: skip
    torch.save({"model": state | {"fc_norm.weight": norm(), "fc_norm.bias": bias()}}, path)


def _load(weights: Path) -> tuple[dict[str, torch.Tensor], int]:
    """State dict of a file that ``write_checkpoint`` made, and its number of heads."""
    state = torch.load(weights, weights_only=True)["model"]
    channels = len(state["patch_embed.proj.bias"])
    return state, next(size.heads for size in SIZES.values() if size.channels == channels)


def _statistics(tokens: torch.Tensor) -> torch.Tensor:
    tokens = tokens.float()
    return torch.stack([tokens.mean(1), tokens.std(1), tokens.amax(1)], 1)


class PublishedModel:
    """The published forward pass as it is described: Conv3d, attention written out, eager, fp32."""

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        state, self._heads = _load(weights)
        self._state = {name: value.to(device) for name, value in state.items()}

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """``(B, 3, T, S, S)`` to mean, std and max over tokens, ``(B, 3, C)``."""
        state = self._state
        kernel = state["patch_embed.proj.weight"]
        x = F.conv3d(clips, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
        _, tokens, channels = x.shape
        x = x + sincos_positions(tokens, channels).to(x.device)
        for index in range(sum(name.endswith("norm1.weight") for name in state)):
            x = self._block(x, f"blocks.{index}.")
        return _statistics(x)

    def _block(self, x: torch.Tensor, at: str) -> torch.Tensor:
        state, (batch, tokens, channels) = self._state, x.shape
        y = F.layer_norm(x, (channels,), state[at + "norm1.weight"], state[at + "norm1.bias"], 1e-6)
        q_bias, v_bias = state[at + "attn.q_bias"], state[at + "attn.v_bias"]
        qkv = F.linear(y, state[at + "attn.qkv.weight"], torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]))
        q, k, v = qkv.reshape(batch, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        y = (attention @ v).transpose(1, 2).reshape(batch, tokens, channels)
        x = x + F.linear(y, state[at + "attn.proj.weight"], state[at + "attn.proj.bias"])
        y = F.layer_norm(x, (channels,), state[at + "norm2.weight"], state[at + "norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, state[at + "mlp.fc1.weight"], state[at + "mlp.fc1.bias"]))
        return x + F.linear(y, state[at + "mlp.fc2.weight"], state[at + "mlp.fc2.bias"])


def transformers_model(weights: Path, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """transformers' ``VideoMAEModel`` with SDPA and the same weights: clips to mean, std and max over tokens."""
    from transformers import VideoMAEConfig, VideoMAEModel

    state, heads = _load(weights)
    blocks = sum(name.endswith("norm1.weight") for name in state)
    config = VideoMAEConfig(
        hidden_size=len(state["patch_embed.proj.bias"]), num_hidden_layers=blocks, num_attention_heads=heads,
        intermediate_size=len(state["blocks.0.mlp.fc1.bias"]), patch_size=state["patch_embed.proj.weight"].shape[-1],
        layer_norm_eps=1e-6, use_mean_pooling=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = VideoMAEModel(config)
    model.load_state_dict(_transformers_names(state, blocks))
    model = model.to(dtype).eval()

    @torch.no_grad()
    def run(clips: torch.Tensor) -> torch.Tensor:
        return _statistics(model(clips.transpose(1, 2).to(dtype)).last_hidden_state)

    return run


def _transformers_names(state: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    named = {
        f"embeddings.patch_embeddings.projection.{part}": state[f"patch_embed.proj.{part}"]
        for part in ("weight", "bias")
    }
    for index in range(blocks):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        q, k, v = state[ours + "attn.qkv.weight"].chunk(3)
        named |= {
            theirs + "attention.attention.query.weight": q,
            theirs + "attention.attention.key.weight": k,
            theirs + "attention.attention.value.weight": v,
            theirs + "attention.attention.query.bias": state[ours + "attn.q_bias"],
            theirs + "attention.attention.value.bias": state[ours + "attn.v_bias"],
        }
        for their_part, our_part in (
            ("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ):  # fmt: skip
            for part in ("weight", "bias"):
                named[f"{theirs}{their_part}.{part}"] = state[f"{ours}{our_part}.{part}"]
    return named
