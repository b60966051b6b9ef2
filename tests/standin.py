"""Stand-in weights for parity checks: each value depends on its parameter's name alone.

``python -m tests.standin vit_s out.pth`` writes ``{"module": state_dict}`` as published fine-tuned checkpoints do.
"""

import hashlib
import sys

import numpy as np

SIZES = {  # channels, blocks, patch, hidden
    "vit_s": (384, 12, 16, 1536),
    "vit_b": (768, 12, 16, 3072),
    "vit_l": (1024, 24, 16, 4096),
    "vit_h": (1280, 32, 16, 5120),
    "vit_g": (1408, 40, 14, 6144),
}


def shapes(size: str, classes: int = 710) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a fine-tuned VideoMAE V2 checkpoint."""
    channels, blocks, patch, hidden = SIZES[size]
    found = {"patch_embed.proj.weight": (channels, 3, 2, patch, patch), "patch_embed.proj.bias": (channels,)}
    for index in range(blocks):
        found |= {
            f"blocks.{index}.{name}": shape
            for name, shape in {
                "norm1.weight": (channels,), "norm1.bias": (channels,), "attn.q_bias": (channels,),
                "attn.v_bias": (channels,), "attn.qkv.weight": (3 * channels, channels),
                "attn.proj.weight": (channels, channels), "attn.proj.bias": (channels,),
                "norm2.weight": (channels,), "norm2.bias": (channels,), "mlp.fc1.weight": (hidden, channels),
                "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (channels, hidden), "mlp.fc2.bias": (channels,),
            }.items()
        }  # fmt: skip
    return found | {
        "fc_norm.weight": (channels,), "fc_norm.bias": (channels,),
        "head.weight": (classes, channels), "head.bias": (classes,),
    }  # fmt: skip


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.1 * random.randn(*shape)).astype("f4")
    if name.endswith("bias"):
        return (0.05 * random.randn(*shape)).astype("f4")
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else np.prod(shape)
    return (random.randn(*shape) * (1.5 / np.sqrt(fan_in))).astype("f4")


def state_dict(size: str) -> dict[str, np.ndarray]:
    return {name: value(name, shape) for name, shape in shapes(size).items()}


if __name__ == "__main__":
    import torch

    torch.save({"module": {k: torch.from_numpy(v) for k, v in state_dict(sys.argv[1]).items()}}, sys.argv[2])
