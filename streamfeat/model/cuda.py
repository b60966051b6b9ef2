"""What makes the encoder fast on NVIDIA GPUs, and nothing that decides its numbers beyond their last bits.

Batches have one size: a smaller one is filled up with whatever was there. So the whole forward pass, statistics
included, can be captured as a CUDA graph, whose replay costs the processor one call; and a clip goes through the same
kernels whatever company it has, which makes its features the same to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion

from streamfeat.model.vit import ModelSize, VideoTransformer
from streamfeat.text import first_line

#: how the network's operations reach the GPU: captured, compiled by torch.compile and captured, or one by one
ENGINES = ("graph", "compile", "eager")

#: clips a batch never exceeds; the products are large enough long before
_MOST_CLIPS = 64
#: of the free memory, the share that a batch may take; the rest is the decoders'
_SHARE_OF_MEMORY = 0.5
#: rows and columns of the result that one multiprocessor computes at a time (cuBLAS on Ampere to Blackwell)
_TILE = 128, 256
#: tiles for each multiprocessor from which a product is counted as large enough: its last, part-filled round is then
#: a sixteenth of its time at most
_ROUNDS = 16
#: clips beside those that the model works on: its input, two batches being filled, two waiting decoded
_CLIPS_AROUND = 5

#: fused attention first to last by speed: cuDNN's has kernels of its own for Hopper and Blackwell, flash attention 2
#: has those of Ampere
_BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
_BACKENDS_BEFORE_HOPPER = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
#: relative error of a fused attention in half precision that works; wrong ones are off by much more
_ATTENTION_ERROR = 1e-2

Forward = Callable[[Tensor], Tensor]


def batch_size(size: ModelSize, tokens: int, clip_bytes: int, itemsize: int, processors: int, free: int) -> int:
    """Clips a batch: the power of two from which throughput stops growing, if as many fit.

    Throughput grows until the narrowest product of a block, ``(clips * tokens, channels)``, has ``_ROUNDS`` tiles for
    each multiprocessor. What the machine is decides, and never a timing: the same command must give the same numbers
    on a busy machine.

    Args:
        tokens: of one clip.
        clip_bytes: of one clip as the model takes it.
        itemsize: bytes of one of the model's numbers.
        processors: multiprocessors of the GPU.
        free: bytes of its memory.
    """
    rows, columns = _TILE
    wanted = _ROUNDS * processors * rows * columns / (tokens * size.channels)
    enough = 1 << max(0, int(wanted) - 1).bit_length()
    # The widest moments: residual, normed input, MLP before and after GELU; or the statistics' two copies in fp32.
    block = tokens * max(2 * (size.channels + size.hidden) * itemsize, size.channels * (itemsize + 8))
    fit = int(free * _SHARE_OF_MEMORY // (block + _CLIPS_AROUND * clip_bytes))
    return max(1, min(_MOST_CLIPS, enough, 1 << fit.bit_length() >> 1))


def features(model: VideoTransformer, *, compiled: bool, backend: SDPBackend | None) -> Forward:
    """``model.forward_features`` with a chosen attention, and its blocks through torch.compile where ``compiled``.

    One block is compiled and its code serves all: the whole network would take minutes.
    """
    blocks = [torch.compile(block, dynamic=False) if compiled else block for block in model.blocks]

    def run(clips: Tensor) -> Tensor:
        x = model.patch_embed(clips) + model.positions
        for block in blocks:
            x = block(x)
        return x

    def run_with_backend(clips: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return run(clips)

    return run if backend is None else run_with_backend


@functools.cache
def attention_backend(
    device: torch.device, dtype: torch.dtype, heads: int, head_size: int, tokens: int
) -> SDPBackend | None:
    """The fastest fused attention that works here for heads of this size; None: torch's own choice.

    Works: it takes queries, keys and values as the network lays them out, as many as it has (what a kernel gets wrong
    is the end that does not fill its tile), and gives what plain attention gives.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(2, tokens, 3, heads, head_size, generator=generator, device=device, dtype=dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    compared = [0, heads - 1]
    few = [part[:, compared].float() for part in (q, k, v)]
    wanted = (few[0] @ few[1].transpose(-2, -1) * head_size**-0.5).softmax(-1) @ few[2]
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    for backend in _BACKENDS if hopper else _BACKENDS_BEFORE_HOPPER:
        try:
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter("ignore")  # torch says at length why a backend cannot be used
                found = F.scaled_dot_product_attention(q, k, v)
        except RuntimeError:
            continue
        if (found[:, compared].float() - wanted).norm() < _ATTENTION_ERROR * wanted.norm():
            return backend
    return None


class Runner:
    """A forward pass at one batch size, by the first of several ways that works here. Not safe for several threads.

    Args:
        forwards: name and function of each way, best first; the last must work.
        capture: whether to replay a CUDA graph, where one can be captured.
        batch_size: clips that go through at once.
        clip_shape: ``(3, T, S, S)``.

    Attributes:
        how: for people: the way that is taken, and why a better one is not.

    Raises:
        torch.OutOfMemoryError: a batch of this size does not fit.
    """

    def __init__(
        self, forwards: Sequence[tuple[str, Forward]], *, capture: bool, batch_size: int, clip_shape: tuple[int, ...],
        dtype: torch.dtype, device: torch.device,
    ) -> None:
        self._clips = torch.zeros(batch_size, *clip_shape, dtype=dtype, device=device)
        self._rows: Tensor | None = None
        self._replay: Callable[[], object] | None = None
        self._forward, name, failed = self._first_that_works(forwards)
        means = [name] if name else []
        if capture:
            try:
                self._replay, self._rows = capture_graph(lambda: self._forward(self._clips), device)
                means.append("CUDA graph")
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever the driver, a library or another thread has against it
                failed.append(f"without CUDA graph: {first_line(error)}")
        self.how = ", ".join(means) + (f" ({'; '.join(failed)})" if failed else "")

    def __call__(self, clips: Tensor) -> Tensor:
        """Rows of ``clips``, at most ``batch_size`` of them. They are overwritten by the next call on the stream."""
        self._clips[: len(clips)].copy_(clips, non_blocking=True)
        if self._replay is None:
            return self._forward(self._clips)[: len(clips)]
        self._replay()
        return self._rows[: len(clips)]

    def _first_that_works(self, forwards: Sequence[tuple[str, Forward]]) -> tuple[Forward, str, list[str]]:
        """The way, its name, and why those before it are not taken."""
        *others, (last_name, last) = forwards
        failed = []
        for name, forward in others:
            try:
                forward(self._clips)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # no compiler, no Triton, or a defect in them
                failed.append(f"without {name}: {first_line(error)}")
                continue
            return forward, name, failed
        last(self._clips)
        return last, last_name, failed


def capture_graph(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
    """Capture what ``run`` does on ``device``: a function that does it again, and the tensor that it fills.

    Other threads may use the device meanwhile.
    """
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # libraries set themselves up at a first call, which cannot be captured
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                rows = run()
        except BaseException:
            end_capture(pool, torch.cuda.current_device())
            raise
    return graph.replay, rows


def end_capture(pool: tuple[int, int], device_index: int) -> None:
    """Tell torch's allocator that a capture into ``pool`` has ended.

    One that CUDA refuses goes on for ever as far as torch before 2.12 knows (PyTorch pull request 180395), as it asks
    for the error first. From then on no memory that a second stream has used is ever free again, and that is how
    decoded frames come.
    """
    if TorchVersion(torch.__version__) >= (2, 12):
        return
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    end = end or getattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", None)  # its name in 2.5
    if end is None:
        return
    with contextlib.suppress(RuntimeError):  # this one was ended properly
        end(device_index, pool)
        # only here: an allocator that knew of the end is told this by the graph
        torch._C._cuda_releasePool(device_index, pool)
        torch.cuda.empty_cache()


def send(rows: Tensor) -> Callable[[], Tensor]:
    """Start copying ``rows`` to the host. They may be overwritten by what is asked for later on the same stream.

    Returns a function that waits for the copy and returns it.
    """
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    # a thread that waits for it sleeps: the decoders have better use for its core
    arrived = torch.cuda.Event(blocking=True)
    arrived.record(torch.cuda.current_stream(rows.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return host

    return wait
