"""The blocks of the transformer in 8-bit integers, compiled for x86 processors with AVX-512 and VNNI.

Against ``streamfeat.model.int8``, which needs no compiler: attention is done in integers too, activations have a scale
for each token, and a block is one call, in which layer norms give integers and products end in GELU or a sum.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from streamfeat import compiled
from streamfeat.model.vit import Block, VideoTransformer

#: output channels whose weights lie together, and bytes that one instruction multiplies; as the C sources have it
_BLOCK, _BYTES = 32, 4
#: where memory begins, and rows of vectors in it: bytes
_ALIGNMENT = 64


def unavailable() -> str | None:
    """Why this machine cannot run it, in one line; None if it can."""
    library = _library()
    if library is None:
        return compiled.MISSING
    if not library.streamfeat_supported():
        return "the processor has no AVX-512 with VNNI"
    return None


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the shape of ``weight``, float32 ``(outputs, inputs)``, and the scale of each output, ``(outputs,)``."""
    scales = weight.abs().amax(1).div_(127).clamp_min_(torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round_().to(torch.int8), scales


class Int8Blocks:
    """All blocks of ``model`` on single clips, in place; takes over their weights. Safe to call from several threads.

    Each call keeps one core busy, however many torch is given. Raises ValueError on a shape that is not provided for:
    all of ``vit.SIZES`` are.
    """

    def __init__(self, model: VideoTransformer) -> None:
        tokens, channels = model.positions.shape
        size = model.size
        self._shape = tokens, size.heads, channels // size.heads, size.hidden
        self._library = _library()
        if not self._library.streamfeat_fits(*self._shape[1:]):
            raise ValueError(f"{size.name} has a shape that the kernels are not made for")
        self._kept: list[Tensor] = []
        self._blocks = [self._block(block) for block in model.blocks]
        self._local = threading.local()

    def __call__(self, x: Tensor) -> None:
        """``x``: contiguous float32 ``(tokens, channels)``. It becomes NaN where a number is not finite."""
        memory = self._memory()
        for block in self._blocks:
            if not self._library.streamfeat_block(block, x.data_ptr(), memory.data_ptr(), *self._shape):
                x.fill_(torch.nan)
                return

    def _memory(self) -> Tensor:
        """This thread's own."""
        if not hasattr(self._local, "memory"):
            memory = torch.zeros(self._library.streamfeat_memory(*self._shape) + _ALIGNMENT, dtype=torch.uint8)
            self._local.memory = memory[-memory.data_ptr() % _ALIGNMENT :]
        return self._local.memory

    def _block(self, block: Block) -> _Block:
        return _Block(
            self._norm(block.norm1), self._linear(block.attn.qkv), self._linear(block.attn.proj),
            self._norm(block.norm2), self._linear(block.mlp.fc1), self._linear(block.mlp.fc2),
        )

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        return _Norm(self._keep(norm.weight), self._keep(norm.bias), norm.eps)

    def _linear(self, layer: nn.Linear) -> _Linear:
        outputs, inputs = layer.weight.shape
        integers, scales = quantise_weight(layer.weight)
        layer.weight = None  # frees it
        # activations are bytes without signs, 128 more than what they stand for
        offsets = integers.sum(1, dtype=torch.int32).mul_(-128)
        packed = integers.view(outputs // _BLOCK, _BLOCK, inputs // _BYTES, _BYTES).transpose(1, 2)
        return _Linear(
            self._keep(packed), self._keep(scales), self._keep(offsets), self._keep(layer.bias), inputs, outputs
        )

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class _Linear(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("offsets", ctypes.c_void_p),
        ("bias", ctypes.c_void_p), ("inputs", ctypes.c_size_t), ("outputs", ctypes.c_size_t),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        ("norm1", _Norm), ("qkv", _Linear), ("proj", _Linear), ("norm2", _Norm), ("fc1", _Linear), ("fc2", _Linear),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = compiled.load(f"{__name__}._int8")
    if library is None:
        return None
    _declare(library.streamfeat_supported, ctypes.c_int, sizes=0)
    _declare(library.streamfeat_fits, ctypes.c_int, sizes=3)
    _declare(library.streamfeat_memory, ctypes.c_size_t, sizes=4)
    _declare(library.streamfeat_block, ctypes.c_int, ctypes.POINTER(_Block), ctypes.c_void_p, ctypes.c_void_p, sizes=4)
    return library


def _declare(function: Callable[..., int], result: type, *arguments: type, sizes: int) -> None:
    function.restype, function.argtypes = result, (*arguments, *[ctypes.c_size_t] * sizes)
