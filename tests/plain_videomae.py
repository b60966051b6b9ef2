"""VideoMAE V2 written plainly from its description, for comparison: Conv3d, explicit softmax, eager, float32."""

import numpy as np
import torch
from torch.nn import functional as F


def plain_positions(tokens, channels):
    table = np.zeros((tokens, channels))
    for position in range(tokens):
        for channel in range(channels):
            angle = position / 10000 ** (2 * (channel // 2) / channels)
            table[position, channel] = np.sin(angle) if channel % 2 == 0 else np.cos(angle)
    return table.astype("f4")


def plain_features(state, clips, heads):
    """Tokens of the last block. ``state`` has the published names, ``clips`` is ``(B, 3, T, S, S)``."""
    kernel = state["patch_embed.proj.weight"]
    x = F.conv3d(clips, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    batch, tokens, channels = x.shape
    x = x + torch.from_numpy(plain_positions(tokens, channels))
    for i in range(sum(key.endswith("attn.qkv.weight") for key in state)):
        p = {key.removeprefix(f"blocks.{i}."): value for key, value in state.items() if key.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (channels,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        bias = torch.cat([p["attn.q_bias"], torch.zeros(channels), p["attn.v_bias"]])
        q, k, v = (y @ p["attn.qkv.weight"].T + bias).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), -1)
        y = (weights @ v).transpose(1, 2).reshape(batch, tokens, channels)
        x = x + y @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        y = F.layer_norm(x, (channels,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = F.gelu(y @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
        x = x + y @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
    return x
