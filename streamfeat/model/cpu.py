"""What makes the encoder fast on CPUs, and nothing that decides its numbers.

Whole clips go to threads of their own, each with its share of the cores: no core then waits for the others at the end
of each product, of which a clip has dozens. And a clip goes through the blocks in buffers that are kept: memory fresh
from the system costs a page fault every 4 KiB, which together can take as long as the product that fills it.
"""

from __future__ import annotations

import functools
import math
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamfeat.model import kernels
from streamfeat.model.int8 import Int8Linear
from streamfeat.model.vit import Block, VideoTransformer

#: clips at once; on machines with more cores than this a clip gets several
_MOST_WORKERS = 16


def gains_by_bf16() -> bool:
    """Whether this machine is of a kind whose matrix products are faster in bf16 than in fp32.

    Instructions for bf16 are not enough: Sapphire Rapids without its matrix tiles (AMX), as many virtual machines have
    it, does half as many operations a second in bf16 as in fp32. So x86 counts with AMX alone. What the machine is
    decides, and never a timing: the same command must give the same numbers on a busy machine.
    """
    if not _has("_is_mkldnn_bf16_supported"):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(has_tiles and has_tiles())


def _has(feature: str) -> bool:
    """What torch's private feature test says; False where this build of torch does not have it."""
    try:
        return bool(getattr(torch.ops.mkldnn, feature)())
    except (AttributeError, RuntimeError, TypeError):
        return False


class Workers:
    """Threads that each take one clip at a time, in the order in which they came.

    Args:
        of_one_core: a clip is never computed by more than one core, so each core has its worker.
    """

    def __init__(self, *, of_one_core: bool = False) -> None:
        cores = torch.get_num_threads()
        self._of_one_core = of_one_core
        self.count = cores if of_one_core else min(cores, _MOST_WORKERS)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="streamfeat-encode")
        ready = threading.Barrier(self.count)

        def take_share() -> None:
            torch.get_num_threads()  # initialises this thread; otherwise its first operation undoes the next line
            torch.set_num_threads(cores // self.count)
            ready.wait()

        for started in [self._pool.submit(take_share) for _ in range(self.count)]:
            started.result()
        torch.set_num_threads(cores)

    def start(self, forward: Callable[[Tensor], Tensor], clips: Tensor) -> Callable[[], Tensor]:
        """Have ``forward`` done for each of ``clips``, without waiting.

        Returns a function that waits for the rows, and raises what ``forward`` raised. Fewer clips than workers are
        not begun before that, unless workers are of one core: whoever waits computes them, one by one on all cores
        together.
        """
        single = clips.split(1)
        if len(single) < self.count and not self._of_one_core:
            return lambda: torch.cat([forward(clip) for clip in single])
        rows = [self._pool.submit(forward, clip) for clip in single]
        return lambda: torch.cat([row.result() for row in rows])

    def close(self) -> None:
        """What was not begun is dropped, and nothing can be started any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def workers_for(*, int8: bool) -> Workers:
    """Workers for what ``optimise`` gives."""
    return Workers(of_one_core=int8 and kernels.unavailable() is None)


def optimise(model: VideoTransformer, *, int8: bool = False) -> Callable[[Tensor], Tensor]:
    """``model.forward_features`` for single clips, faster; takes over the model. Safe to call from several threads.

    With ``int8`` the products of a model in fp32 are done in 8-bit integers.
    """
    dtype = model.patch_embed.proj.weight.dtype
    if int8 and kernels.unavailable() is None:
        return _Features(model, kernels.Int8Blocks(model))
    linear = Int8Linear if int8 else _Blas if dtype == torch.float32 else _Packed
    if linear is _Packed and not _packing_works(dtype):
        return model.forward_features
    return _Features(model, _Blocks(model, linear))


class _Features:
    """Patches to tokens, and ``blocks`` on them in place: of one clip's tokens, ``(tokens, channels)``."""

    def __init__(self, model: VideoTransformer, blocks: Callable[[Tensor], None]) -> None:
        self._embed = model.patch_embed
        self._positions = model.positions
        self._blocks = blocks

    def __call__(self, clip: Tensor) -> Tensor:
        with torch.inference_mode():
            x = self._embed(clip).add_(self._positions)[0]
            self._blocks(x)
            return x[None]


#: makes the linear layers of blocks
_Linears = type["_Blas | _Packed | Int8Linear"]


class _Blocks:
    """All blocks of ``model`` through torch, in memory that is kept; takes over their weights."""

    def __init__(self, model: VideoTransformer, linear: _Linears) -> None:
        self._make_buffers = functools.partial(
            _Buffers, *model.positions.shape, model.size.hidden, model.size.heads, model.positions.dtype,
            linear.most_rows or len(model.positions),
        )
        self._blocks = [_Block(block, linear) for block in model.blocks]
        self._local = threading.local()

    def __call__(self, x: Tensor) -> None:
        if not hasattr(self._local, "buffers"):  # of this thread
            self._local.buffers = self._make_buffers()
        for block in self._blocks:
            block(x, self._local.buffers)


class _Buffers:
    def __init__(
        self, tokens: int, channels: int, hidden: int, heads: int, dtype: torch.dtype, most_rows: int
    ) -> None:
        rows = math.ceil(tokens / math.ceil(tokens / most_rows))
        #: tokens that go through a layer together
        self.parts = [slice(start, start + rows) for start in range(0, tokens, rows)]
        self.qkv = torch.empty(rows, 3 * channels, dtype=dtype)
        self.hidden = torch.empty(rows, hidden, dtype=dtype)
        # Attention in fp32 is faster than in half precision, but for processors with matrix tiles.
        attention_dtype = dtype if dtype == torch.bfloat16 and _has_tiles() else torch.float32
        self.heads = torch.empty(3, heads, tokens, channels // heads, dtype=attention_dtype)


def _has_tiles() -> bool:
    try:
        return bool(torch.cpu._is_amx_tile_supported())
    except AttributeError:
        return False


class _Block:
    """One block of the transformer on one clip, ``(tokens, channels)``, in place."""

    def __init__(self, block: Block, linear: _Linears) -> None:
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._qkv, self._proj = linear(block.attn.qkv), linear(block.attn.proj)
        self._fc1, self._fc2 = linear(block.mlp.fc1), linear(block.mlp.fc2)

    def __call__(self, x: Tensor, buffers: _Buffers) -> None:
        heads = buffers.heads
        _, count, _, width = heads.shape
        for part in buffers.parts:
            rows = x[part]
            qkv = self._qkv.apply(self._norm1(rows), buffers.qkv[: len(rows)])
            # Fused attention reads each head many times: tokens side by side beat a copy.
            heads[:, :, part].copy_(qkv.view(-1, 3, count, width).permute(1, 2, 0, 3))
        mixed = F.scaled_dot_product_attention(*heads[:, None].unbind(0))[0]
        for part in buffers.parts:
            rows = x[part]
            self._proj.add_to(rows, mixed[:, part].transpose(0, 1).reshape(len(rows), -1).to(x.dtype))
            self._fc2.add_to(rows, self._fc1.apply_gelu(self._norm2(rows), buffers.hidden[: len(rows)]))


class _Blas:
    """A linear layer through torch's public operations, into memory that is there already."""

    most_rows = None

    def __init__(self, layer: nn.Linear) -> None:
        self._weight, self._bias = layer.weight.t().contiguous(), layer.bias
        layer.weight = None  # frees the other layout

    def apply(self, x: Tensor, out: Tensor) -> Tensor:
        # Adding afterwards costs less than starting the product from a matrix of copied biases, as addmm does.
        return torch.mm(x, self._weight, out=out).add_(self._bias)

    def apply_gelu(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(self.apply(x, out))

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        residual.add_(self._bias).addmm_(x, self._weight)


class _Packed:
    """A linear layer through oneDNN, with its weight in oneDNN's own layout and GELU or addition in the same pass.

    These are the operations that torch.compile emits for CPUs, called directly: no compiler is needed.
    """

    most_rows = None

    def __init__(self, layer: nn.Linear) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
        self._bias = layer.bias
        layer.weight = None  # frees the unpacked weight

    def apply(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")

    def apply_gelu(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "gelu", [], "none")

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        residual.copy_(torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add"))


@functools.cache
def _packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch has the private operations of ``_Packed``, and they give what they should."""
    if not _has({torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]):
        return False
    with torch.inference_mode():
        layer = nn.Linear(32, 32, dtype=dtype)
        x = torch.linspace(-2, 2, 64 * 32).view(64, 32).to(dtype)
        plain = layer(x)
        try:
            packed = _Packed(layer)
            summed = x.clone()
            packed.add_to(summed, x)
            found = packed.apply(x, x), packed.apply_gelu(x, x), summed
        except (AttributeError, RuntimeError, TypeError):
            return False
        wanted = plain, F.gelu(plain), plain + x
        return all(torch.allclose(f, w, rtol=0.05, atol=0.05) for f, w in zip(found, wanted, strict=True))
