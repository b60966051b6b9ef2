"""The encoder's way on CUDA, as far as it goes without a GPU: which batch, which engine, and what if one fails."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from streamfeat.model import ModelError, cuda, encoder, fp8, load_encoder
from streamfeat.model.cuda import Runner
from streamfeat.model.vit import SIZES, VideoTransformer

SMALL = {"clip_frames": 4, "image_size": 64}
CPU = torch.device("cpu")


def clips_of(count, seed=0):
    return torch.randn(count, 3, 4, 64, 64, generator=torch.Generator().manual_seed(seed))


class FakeGraph:
    """Captures as CUDA does: a replay does the same again with whatever is in the same memory."""

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, run, device):
        self.captured += 1
        rows = run().clone()

        def replay():
            self.replayed += 1
            rows.copy_(run())

        return replay, rows


@pytest.fixture
def cuda_on_cpu(monkeypatch):
    """Encoders on a CPU take CUDA's way."""
    graph = FakeGraph()
    monkeypatch.setattr(encoder.cpu, "workers_for", lambda int8: None)
    monkeypatch.setattr(cuda, "attention_backend", lambda *arguments: SDPBackend.MATH)
    monkeypatch.setattr(cuda, "capture_graph", graph.capture)
    monkeypatch.setattr(cuda, "send", lambda rows: rows.clone().clone)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    return graph


def load(**options):
    options = {"precision": "fp32", "batch_size": 4, "device": "cpu", **SMALL, **options}
    return load_encoder("random", size="vit_tiny", **options)


def plain(clips):
    return load_encoder("random", size="vit_tiny", precision="fp32", device="cpu", **SMALL).encode(clips)


@pytest.fixture(scope="module")
def wanted():
    return plain(clips_of(7))


def test_a_captured_graph_serves_every_batch_whatever_its_size(wanted, cuda_on_cpu):
    made = load()
    assert (made.how, made.ahead, cuda_on_cpu.captured) == ("math, CUDA graph", 1, 1)
    found = made.encode(clips_of(7))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert cuda_on_cpu.replayed == 2
    # what was in the batch before does not show, to the last bit
    np.testing.assert_array_equal(made.encode(clips_of(7)[2:3]), found[2:3])
    assert made.encode(clips_of(0)).shape == (0, 3, 128)


def test_batches_in_flight_keep_their_own_rows(wanted, cuda_on_cpu):
    made = load()
    clips = clips_of(7)
    pending = [made.submit(clips[start : start + 2]) for start in range(0, 7, 2)]
    np.testing.assert_allclose(np.concatenate([part.result() for part in pending]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing\nAt:"), ValueError("x")])
def test_where_no_graph_can_be_captured_it_runs_without(wanted, cuda_on_cpu, monkeypatch, error):
    def refuse(run, device):
        raise error

    monkeypatch.setattr(cuda, "capture_graph", refuse)
    made = load()
    assert made.how == f"math (without CUDA graph: {str(error).splitlines()[0]})"
    np.testing.assert_allclose(made.encode(clips_of(7)), wanted, rtol=1e-4, atol=1e-5)


def test_running_out_of_memory_halves_the_batch_and_captures_anew(wanted, cuda_on_cpu, monkeypatch):
    captured = []

    def capture(run, device):
        rows = run()
        captured.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cuda_on_cpu.capture(run, device)

    monkeypatch.setattr(cuda, "capture_graph", capture)
    made = load(batch_size=8)
    assert (made.batch_size, captured) == (2, [8, 4, 2])
    np.testing.assert_allclose(made.encode(clips_of(7)), wanted, rtol=1e-4, atol=1e-5)

    # and amid a run, when something else has taken the memory meanwhile
    made._forward._replay = None
    monkeypatch.setattr(made._forward, "_forward", lambda clips: capture(lambda: clips_of(3), CPU))
    np.testing.assert_allclose(made.encode(clips_of(7)), wanted, rtol=1e-4, atol=1e-5)
    assert made.batch_size == 1 and captured == [8, 4, 2, 3, 1]
    assert made.why["batch_size"] == "halved until it fitted the memory"


def test_a_device_that_does_not_work_is_one_line(monkeypatch):
    def fails(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nGPU 0 has ...")

    monkeypatch.setattr(encoder, "_choose_device", lambda device: (torch.device("cuda", 0), "fake"))
    monkeypatch.setattr(encoder.Encoder, "_network", fails)
    with pytest.raises(ModelError, match="vit_tiny in fp16 does not run on cuda:0: CUDA out of") as error:
        load(device="cuda", precision="fp16")
    assert "\n" not in str(error.value)


def test_a_driver_that_does_not_answer_is_one_line(monkeypatch):
    def fails():
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nMore")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", fails)
    with pytest.raises(ModelError, match="cuda does not work: CUDA driver initialization failed") as error:
        load(device="cuda")
    assert "\n" not in str(error.value)


class FakeAllocator:
    """torch's, and whether it knows that its captures have ended."""

    def __init__(self, monkeypatch, version, name="_cuda_endAllocateToPool"):
        self.open, self.released = {(0, 1)}, []
        monkeypatch.setattr(torch, "__version__", version)
        for other in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            monkeypatch.delattr(torch._C, other, raising=False)
        monkeypatch.setattr(torch._C, name, self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: self.released.append(pool), raising=False)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def end(self, index, pool):
        if pool not in self.open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open.remove(pool)


@pytest.mark.parametrize("name", ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"])
def test_the_allocator_hears_of_the_end_of_a_capture_that_was_refused(monkeypatch, name):
    allocator = FakeAllocator(monkeypatch, "2.10.0+cu128", name)
    cuda.end_capture((0, 1), 0)
    assert not allocator.open and allocator.released == [(0, 1)]
    # one that it knows of, as where memory ran out: the graph gives its memory back
    cuda.end_capture((0, 1), 0)
    assert allocator.released == [(0, 1)]


def test_a_refused_capture_is_ended(monkeypatch):
    fakes = {name: mock.MagicMock() for name in ("device", "stream", "Stream", "current_stream", "CUDAGraph", "graph")}
    for name in ("device", "stream", "graph"):
        fakes[name].return_value.__exit__.return_value = False
    ended = []
    monkeypatch.setattr(cuda, "end_capture", lambda pool, index: ended.append((pool, index)))
    with mock.patch.multiple(torch.cuda, graph_pool_handle=lambda: (0, 7), current_device=lambda: 3, **fakes):
        run = mock.Mock(side_effect=[None, None, "rows"])
        assert cuda.capture_graph(run, torch.device("cuda", 3))[1] == "rows" and not ended
        with pytest.raises(RuntimeError, match="not permitted"):
            cuda.capture_graph(mock.Mock(side_effect=[None, None, RuntimeError("not permitted")]), CPU)
    assert ended == [((0, 7), 3)]
    assert fakes["graph"].call_args.kwargs["capture_error_mode"] == "thread_local"


def test_a_torch_that_ends_captures_itself_is_left_alone(monkeypatch):
    allocator = FakeAllocator(monkeypatch, "2.12.0")
    cuda.end_capture((0, 1), 0)
    assert allocator.open and not allocator.released


def attention_that_is_wrong(where):
    """A scaled_dot_product_attention that forgets ``where`` of the keys."""
    right = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: right(q, k[:, :, where], v[:, :, where])


def test_attention_is_tried_with_as_many_tokens_as_the_network_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "_BACKENDS", (SDPBackend.FLASH_ATTENTION,))
    tried = cuda.attention_backend.__wrapped__
    assert tried(CPU, torch.bfloat16, 2, 64, 288) == SDPBackend.FLASH_ATTENTION
    # a kernel that loses what does not fill a tile of 256
    monkeypatch.setattr(cuda.F, "scaled_dot_product_attention", attention_that_is_wrong(slice(256)))
    assert tried(CPU, torch.bfloat16, 2, 64, 288) is None
    assert tried(CPU, torch.bfloat16, 2, 64, 256) == SDPBackend.FLASH_ATTENTION
    assert tried(CPU, torch.float32, 2, 64, 288) is None


def test_too_little_memory_for_one_clip_is_one_line(cuda_on_cpu, monkeypatch):
    def capture(run, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "capture_graph", capture)
    with pytest.raises(ModelError, match="cpu has not enough free memory for one clip of vit_tiny in fp32"):
        load()


def test_torch_compile_is_left_out_where_it_fails(wanted, cuda_on_cpu, monkeypatch):
    def compile(block, **options):
        def fails(x):
            raise RuntimeError("Cannot find a working triton installation")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    made = load(engine="compile")
    assert made.how == "math, CUDA graph (without torch.compile, math: Cannot find a working triton installation)"
    np.testing.assert_allclose(made.encode(clips_of(7)), wanted, rtol=1e-4, atol=1e-5)


def test_engines(wanted, cuda_on_cpu, monkeypatch):
    made = load(engine="eager")
    assert (made.how, cuda_on_cpu.captured) == ("math", 0)
    np.testing.assert_allclose(made.encode(clips_of(7)), wanted, rtol=1e-4, atol=1e-5)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda block, **options: compiled.append(options) or block)
    assert load(engine="compile").how == "torch.compile, math, CUDA graph"
    assert compiled == [{"dynamic": False}] * 4  # blocks of vit_tiny
    with pytest.raises(ModelError, match="no engine named 'warp'; there are auto, graph, compile, eager"):
        load(engine="warp")


def test_memory_is_no_part_of_a_way_that_failed():
    def fails(clips):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Runner([("compiled", fails), ("plain", lambda clips: clips)], capture=False, batch_size=1, clip_shape=(1,),
               dtype=torch.float32, device=CPU)


def clips_a_batch(name, processors, free=100 * 2**30):
    size = SIZES[name]
    tokens = int(np.prod(size.grid(16, 224)))
    return cuda.batch_size(size, tokens, 3 * 16 * 224 * 224 * 2, 2, processors, free)


def test_a_batch_fills_the_gpu_and_fits_its_memory():
    h200, rtx_4090, t4 = 132, 128, 40
    assert [clips_a_batch(name, h200) for name in ("vit_g", "vit_b", "vit_s")] == [32, 64, 64]
    assert [clips_a_batch(name, t4) for name in ("vit_g", "vit_b", "vit_s")] == [8, 32, 64]
    assert clips_a_batch("vit_g", rtx_4090, 2 * 2**30) < 32
    assert clips_a_batch("vit_g", rtx_4090, 2**20) == 1
    # half of a memory is left, and what a clip takes is more than the model's widest layer
    for free in (2**28, 2**30, 2**32):
        assert clips_a_batch("vit_g", h200, free) * 2048 * (1408 + 6144) * 2 < free / 2


# fp8


def emulate(x, x_scale, weight, weight_scale, bias):
    """What the matrix unit computes, in fp32."""
    product = (x.float() * x_scale) @ (weight.float() * weight_scale.t()).t() + bias.float()
    return product.to(torch.bfloat16)


@pytest.fixture
def fp8_on_cpu(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(fp8, "scaled_product", emulate)
    monkeypatch.setattr(fp8, "unavailable", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda block, **options: block)


def test_rows_are_scaled_to_the_range_of_e4m3():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-6], [1], [100], [0], [3e4]])
    rows, scale = fp8.quantise(x.half())
    assert rows.dtype == torch.float8_e4m3fn and scale.shape == (5, 1) and scale.dtype == torch.float32
    assert rows.float().abs().amax(1).tolist() == [448, 448, 448, 0, 448]
    # three bits of mantissa: an error of a sixteenth at most, of the least number for what is far below the largest
    error = (rows.float() * scale - x.half().float()).abs()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10) * 1.001).all()
    broken, _ = fp8.quantise(torch.tensor([[1.0, torch.inf], [torch.nan, 1.0], [2.0, 1.0]]))
    assert broken.float().isnan().any(1).tolist() == [True, True, False]


def test_the_product_that_torch_has_on_a_cpu_agrees_where_it_goes():
    """Scales of rows need a GPU; with one scale for all, torch's own product shows the order of its arguments."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 32, generator=generator).to(torch.float8_e4m3fn) for n in (16, 48))
    scales, bias = torch.tensor(0.5), torch.randn(48, generator=generator).bfloat16()
    try:
        found = fp8.scaled_product(x, scales, weight, 2 * scales, bias)
    except RuntimeError as error:
        pytest.skip(f"this build has no scaled products on a CPU: {str(error).splitlines()[0]}")
    wanted = emulate(x, scales.view(1, 1), weight, (2 * scales).view(1, 1), bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0.02, atol=0.05)


def test_a_layer_in_fp8_is_the_layer_within_its_precision(monkeypatch):
    monkeypatch.setattr(fp8, "scaled_product", emulate)
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 64).half().requires_grad_(False)
    x = torch.randn(2, 7, 128).half()
    quick = fp8.Fp8Linear(layer, torch.zeros(128))
    found, wanted = quick(x), layer(x)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    assert (found.float() - wanted.float()).norm() < 0.05 * wanted.float().norm()
    # a token's numbers do not depend on the others
    torch.testing.assert_close(quick(x[:, 3:4]), found[:, 3:4], rtol=0, atol=0)


def test_what_is_common_to_all_tokens_is_put_right(monkeypatch):
    monkeypatch.setattr(fp8, "scaled_product", lambda *tensors: emulate(*tensors[:4], tensors[4].float()))
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64).requires_grad_(False)
    common = 3 * torch.randn(256)
    x = common + 0.1 * torch.randn(500, 256)

    def error(mean):
        return (fp8.Fp8Linear(layer, mean)(x).float().mean(0) - layer(x).mean(0)).norm()

    assert error(common) < error(torch.zeros(256)) / 3


def test_every_product_of_a_block_is_in_fp8_and_the_rest_is_not(monkeypatch):
    calls = []
    monkeypatch.setattr(fp8, "scaled_product", lambda *tensors: calls.append(tensors) or emulate(*tensors))
    model = VideoTransformer(SIZES["vit_tiny"], 4, 64).half().requires_grad_(False)
    clips = clips_of(1).half()
    wanted = model.forward_features(clips)
    found = fp8.convert(model).forward_features(clips)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert len(calls) == 16 and found.dtype == torch.float16
    assert {tensors[2].shape for tensors in calls} == {(384, 128), (128, 128), (512, 128), (128, 512)}
    assert torch.nn.functional.cosine_similarity(found.float().mean(1), wanted.float().mean(1)).min() > 0.99


def test_an_encoder_in_fp8(wanted, fp8_on_cpu, monkeypatch):
    monkeypatch.setattr(encoder, "LOWEST_COSINE", 0.99)
    made = load(precision="fp8")
    assert made.precision == "fp8" and made.input_dtype == torch.float16 and "torch.compile" in made.how
    found = torch.from_numpy(made.encode(clips_of(7)))
    cosine = torch.nn.functional.cosine_similarity(found, torch.from_numpy(wanted), dim=-1).min()
    assert 0.99 < cosine < 0.99999


def test_fp8_is_refused_when_it_changes_the_features(fp8_on_cpu, monkeypatch):
    quantise = fp8.quantise
    monkeypatch.setattr(fp8, "quantise", lambda x: quantise(x.float().round()))
    made = load(precision="fp8")
    with pytest.raises(ModelError, match=r"fp8 is too coarse .* falls to 0\.\d+, under 0.999; use fp16") as error:
        made.encode(clips_of(3))
    assert "\n" not in str(error.value)


def test_fp8_needs_a_gpu():
    with pytest.raises(ModelError, match="--precision fp8 cannot be used here: cpu has no fp8 products"):
        load(precision="fp8")


@pytest.mark.parametrize(
    ("capability", "version", "says"),
    [
        ((8, 0), "2.10.0", "NVIDIA Fake has no fp8 products"), ((8, 9), "2.11.1+cu128", "it needs 2.12"),
        ((8, 9), "2.12.0", None), ((9, 0), "2.5.1+cu124", None), ((12, 0), "2.10.0", None),
    ],
)  # fmt: skip
def test_fp8_needs_the_matrix_units_for_it(monkeypatch, capability, version, says):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Fake")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(fp8, "_refused", lambda device: None)
    reason = fp8.unavailable(torch.device("cuda:0"))
    assert reason is None if says is None else says in reason


def test_fp8_products_are_tried(monkeypatch):
    monkeypatch.setattr(fp8, "scaled_product", emulate)
    assert fp8._refused(CPU) is None

    def refuse(*tensors):
        raise RuntimeError("Rowwise scaling is not currently supported on your device\nException raised from ...")

    monkeypatch.setattr(fp8, "scaled_product", refuse)
    assert fp8._refused(CPU).endswith("here (Rowwise scaling is not currently supported on your device)")
    for wrong in (1.02, torch.nan):
        monkeypatch.setattr(fp8, "scaled_product", lambda *tensors, wrong=wrong: wrong * emulate(*tensors))
        assert "wrong here" in fp8._refused(CPU)
