"""Clips to features: statistics, precisions, batches, non-finite rows, refusals."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streamfeat.model import ModelError, WeightsError, cpu, encoder, load_encoder
from streamfeat.model.vit import SIZES
from tests import standin
from tests.plain_videomae import plain_features

SMALL = {"clip_frames": 4, "image_size": 64}


def clips_of(count, seed=0, frames=4, side=64):
    return torch.randn(count, 3, frames, side, side, generator=torch.Generator().manual_seed(seed))


def least_cosine(a, b):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return F.cosine_similarity(a, b, dim=-1).min().item()


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """vit_s with stand-in weights, as a published checkpoint file."""
    path = tmp_path_factory.mktemp("weights") / "vit_s.pth"
    torch.save({"module": {name: torch.from_numpy(value) for name, value in standin.state_dict("vit_s").items()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def plain_tokens():
    state = {name: torch.from_numpy(value) for name, value in standin.state_dict("vit_s").items()}
    return plain_features(state, clips_of(3), SIZES["vit_s"].heads), state


@pytest.mark.parametrize("precision, cosine, difference", [
    ("fp32", 0.9999999, 1e-4), ("bf16", 0.9995, 0.5), ("fp16", 0.99999, 0.2)])
def test_statistics_are_those_of_the_plain_implementation(precision, cosine, difference, stand_in, plain_tokens):
    tokens, state = plain_tokens
    stats = ("max", "mean", "fc_norm", "std")
    encoder = load_encoder(stand_in, precision=precision, stats=stats, device="cpu", **SMALL)
    features = encoder.encode(clips_of(3))
    norm = F.layer_norm(tokens.mean(1), (384,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    deviation = ((tokens - tokens.mean(1, keepdim=True)) ** 2).sum(1).div(tokens.shape[1] - 1).sqrt()
    wanted = torch.stack([tokens.amax(1), tokens.mean(1), norm, deviation], 1)
    assert features.dtype == np.float32
    assert features.shape == (3, 4, 384)
    assert least_cosine(features, wanted) > cosine
    assert np.abs(features - wanted.numpy()).max() < difference
    assert encoder.row_shape == (4, 384)
    assert (encoder.precision, encoder.exact_reruns) == (precision, 0)


def test_one_statistic_has_no_axis_of_its_own(stand_in):
    encoder = load_encoder(stand_in, stats=("fc_norm",), device="cpu", **SMALL)
    assert encoder.row_shape == (384,)
    assert encoder.encode(clips_of(2)).shape == (2, 384)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_size_encodes_as_the_plain_implementation(size, precision, tmp_path, monkeypatch):
    # Two blocks are enough to meet every width, head size and patch; forty of vit_g would take minutes.
    import dataclasses

    short = dataclasses.replace(SIZES[size], blocks=2)
    monkeypatch.setitem(SIZES, size, short)
    monkeypatch.setitem(standin.SIZES, size, (short.channels, short.blocks, short.patch, short.hidden))
    state = {name: torch.from_numpy(value) for name, value in standin.state_dict(size).items()}
    torch.save({"model": state}, tmp_path / "weights.pth")
    side = 3 * short.patch
    encoder = load_encoder(str(tmp_path / "weights.pth"), precision=precision, stats=("mean", "max"), device="cpu",
                           clip_frames=4, image_size=side)
    clips = clips_of(2, frames=4, side=side)
    tokens = plain_features(state, clips, short.heads)
    wanted = torch.stack([tokens.mean(1), tokens.amax(1)], 1)
    assert encoder.size is short
    assert least_cosine(encoder.encode(clips), wanted) > (0.9999999 if precision == "fp32" else 0.9995)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_do_not_depend_on_the_batch_they_are_in(precision):
    encoder = load_encoder("random", size="vit_tiny", precision=precision, batch_size=3, device="cpu", **SMALL)
    clips = clips_of(7)
    together = encoder.encode(clips)
    apart = np.concatenate([encoder.encode(clip[None]) for clip in clips])
    assert together.shape == (7, 3, 128)
    assert least_cosine(together, apart) > (0.9999999 if precision == "fp32" else 0.9999)
    assert encoder.encode(clips[:0]).shape == (0, 3, 128)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_without_torch_s_private_operations_it_still_works(precision, monkeypatch):
    options = {"size": "vit_tiny", "precision": precision, "device": "cpu", **SMALL}
    wanted = load_encoder("random", **{**options, "precision": "fp32"}).encode(clips_of(3))
    encoder.cpu._packing_works.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
        assert not encoder.cpu._packing_works(torch.bfloat16)
        assert least_cosine(load_encoder("random", **options).encode(clips_of(3)), wanted) > 0.9995
    encoder.cpu._packing_works.cache_clear()
    assert least_cosine(load_encoder("random", **options).encode(clips_of(3)), wanted) > 0.9995


@pytest.mark.parametrize(
    ("machine", "bf16", "tiles", "gains"),
    [
        ("x86_64", True, True, True), ("x86_64", True, False, False), ("AMD64", True, True, True),
        ("aarch64", True, False, True), ("aarch64", False, False, False), ("x86_64", False, True, False),
    ],
)  # fmt: skip
def test_what_the_machine_is_decides_the_precision(monkeypatch, machine, bf16, tiles, gains):
    monkeypatch.setattr(encoder.cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert encoder.cpu.gains_by_bf16() is gains


def test_bf16_is_not_taken_where_torch_cannot_tell(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    assert not encoder.cpu.gains_by_bf16()


def test_the_caller_s_threads_stay_as_they_were():
    threads = torch.get_num_threads()
    made = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    made.encode(clips_of(5))
    assert torch.get_num_threads() == threads


def test_the_file_may_change_while_its_weights_are_in_use(tmp_path):
    from streamfeat.model import weights

    path = tmp_path / "weights.pth"
    torch.save(dict(weights.load("random", "vit_tiny").state_dict), path)
    made = load_encoder(str(path), precision="fp32", device="cpu", **SMALL)
    wanted = made.encode(clips_of(2))
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(made.encode(clips_of(2)), wanted)


def test_submitted_work_comes_back_as_its_own():
    encoder = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    batches = [clips_of(2, seed) for seed in range(3)]
    pending = [encoder.submit(clips) for clips in batches]
    for clips, work in zip(batches, pending, strict=True):
        np.testing.assert_array_equal(work.result(), encoder.encode(clips))


class Gate:
    """Holds up every clip that a worker takes until it is opened."""

    def __init__(self, made, monkeypatch):
        self.opened, self.taken = threading.Event(), threading.Semaphore(0)
        forward = made._forward

        def held_up(clip):
            self.taken.release()
            assert self.opened.wait(10), "nobody opened the gate"
            return forward(clip)

        monkeypatch.setattr(made, "_forward", held_up)


def test_submitting_waits_for_nothing(monkeypatch):
    made = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    batches = [clips_of(made.batch_size, seed) for seed in range(1 + made.ahead)]
    wanted = [made.encode(clips) for clips in batches]
    gate = Gate(made, monkeypatch)
    pending = [made.submit(clips) for clips in batches]
    for _ in range(made.batch_size):
        assert gate.taken.acquire(timeout=10), "the clips of a batch are not computed all at once"
    gate.opened.set()
    for work, rows in zip(pending, wanted, strict=True):
        np.testing.assert_array_equal(work.result(), rows)


@pytest.mark.parametrize("of_one_core", [False, True])
def test_a_lone_clip_is_left_to_whoever_waits_unless_workers_are_of_one_core(of_one_core):
    workers = cpu.Workers(of_one_core=of_one_core)
    if workers.count == 1 and not of_one_core:
        pytest.skip("there is one core")
    begun = threading.Event()

    def forward(clip):
        begun.set()
        return clip

    wait = workers.start(forward, torch.zeros(1, 3))
    assert begun.wait(10 if of_one_core else 0.2) == of_one_core
    assert wait().shape == (1, 3) and begun.is_set()
    workers.close()


def test_what_was_not_begun_when_it_is_closed_never_is(monkeypatch):
    made = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    gate = Gate(made, monkeypatch)
    pending = [made.submit(clips_of(made.batch_size)) for _ in range(3)]
    for _ in range(made.batch_size):
        gate.taken.acquire(timeout=10)
    made.close()
    gate.opened.set()
    assert pending[0].result().shape == (made.batch_size, 3, 128)
    for work in pending[1:]:
        with pytest.raises(CancelledError):
            work.result()
    assert not gate.taken.acquire(blocking=False)


@pytest.mark.parametrize("count", [1, "batch", "more"])
def test_what_goes_wrong_in_a_worker_is_raised_by_the_result(count, monkeypatch):
    def broken(tokens, *rest):
        raise RuntimeError("could not allocate a tensor")

    made = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    clips = clips_of({1: 1, "batch": made.batch_size, "more": 2 * made.batch_size + 1}[count])
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "pool", broken)
        pending = made.submit(clips)
        with pytest.raises(RuntimeError, match="could not allocate"):
            pending.result()
    assert made.encode(clips).shape == (len(clips), 3, 128)


def test_any_floating_type_and_layout_of_clips_is_taken():
    encoder = load_encoder("random", size="vit_tiny", precision="fp32", device="cpu", **SMALL)
    clips = clips_of(2).half().float()
    wanted = encoder.encode(clips)
    np.testing.assert_array_equal(encoder.encode(clips.half()), wanted)
    scattered = clips.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    np.testing.assert_array_equal(encoder.encode(scattered), wanted)
    assert encoder.input_dtype == torch.float32


def overflowing_checkpoint(path):
    """Weights whose features overflow in fp16 and not in fp32: the last block adds a million to one channel."""
    from streamfeat.model import weights

    state = dict(weights.load("random", "vit_tiny").state_dict)
    state["blocks.3.mlp.fc2.bias"] = state["blocks.3.mlp.fc2.bias"].index_fill(0, torch.tensor([5]), 1e6)
    torch.save(state, path)
    return str(path)


def test_rows_that_overflow_are_computed_again_in_fp32(tmp_path):
    path = overflowing_checkpoint(tmp_path / "weights.pth")
    exact = load_encoder(path, precision="fp32", device="cpu", **SMALL)
    half = load_encoder(path, precision="fp16", device="cpu", **SMALL)
    clips = clips_of(3)
    np.testing.assert_allclose(half.encode(clips), exact.encode(clips), rtol=1e-4, atol=1e-4)
    assert (half.exact_reruns, exact.exact_reruns) == (1, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_rows_that_stay_broken_come_back_as_nan(precision):
    encoder = load_encoder("random", size="vit_tiny", precision=precision, device="cpu", **SMALL)
    clips = clips_of(4)
    wanted = encoder.encode(clips)
    clips[2, 0, 0, 0, 0] = torch.inf
    features = encoder.encode(clips)
    assert np.isnan(features[2]).all()
    np.testing.assert_allclose(features[[0, 1, 3]], wanted[[0, 1, 3]], rtol=1e-2, atol=1e-2)


def test_auto_takes_what_this_machine_gains_by(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gains, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(encoder.cpu, "gains_by_bf16", lambda gains=gains: gains)
        made = load_encoder("random", size="vit_tiny", **SMALL)
        assert (made.device.type, made.precision) == ("cpu", precision)
    assert made.batch_size >= 1


@pytest.mark.parametrize("changes, told", [
    ({"size": "vit_x"}, "no model size named 'vit_x'; there are vit_tiny, vit_s"),
    ({"device": "gpu"}, "no device named 'gpu'"),
    ({"device": "meta"}, "cannot run on meta"),
    ({"device": "cuda:99"}, "cuda:99 asked for, but torch sees"),
    ({"precision": "int4"}, "no precision named 'int4'"),
    ({"stats": ()}, "statistics must be"),
    ({"stats": ("mean", "mean")}, "statistics must be"),
    ({"stats": ("median",)}, "statistics must be different names out of mean, std, max, fc_norm, not median"),
    ({"batch_size": 0}, "batch size must be"),
    ({"batch_size": "many"}, "batch size must be"),
    ({"clip_frames": 5}, "clips of 5 frames do not fit vit_tiny"),
    ({"image_size": 100}, "image size of 100 does not fit vit_tiny"),
])
def test_what_cannot_be_is_refused_in_one_line(changes, told):
    with pytest.raises(ModelError) as error:
        load_encoder(**{"weights": "random", "size": "vit_tiny", "device": "cpu", **changes})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_fc_norm_needs_weights_that_have_it(tmp_path):
    from streamfeat.model import weights

    state = {name: value for name, value in weights.load("random", "vit_tiny").state_dict.items() if "fc_" not in name}
    torch.save(state, tmp_path / "weights.pth")
    assert load_encoder(str(tmp_path / "weights.pth"), device="cpu").row_shape == (3, 128)
    with pytest.raises(WeightsError, match="no final norm"):
        load_encoder(str(tmp_path / "weights.pth"), stats=("fc_norm",), device="cpu")


@pytest.mark.parametrize("shape", [(3, 4, 64, 64), (1, 3, 4, 64, 65), (1, 3, 6, 64, 64), (1, 4, 3, 64, 64)])
def test_clips_of_another_shape_are_refused(shape):
    encoder = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    with pytest.raises(ModelError, match=r"clips must be floating point \(B, 3, 4, 64, 64\)"):
        encoder.encode(torch.zeros(shape))
    with pytest.raises(ModelError, match="uint8"):
        encoder.encode(torch.zeros(1, 3, 4, 64, 64, dtype=torch.uint8))
