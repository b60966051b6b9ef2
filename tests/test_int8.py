"""Products in 8-bit integers on CPUs: what they give, and when they are refused."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from streamfeat.model import ModelError, encoder, int8, kernels, load_encoder
from tests.test_encoder import SMALL, clips_of, least_cosine, stand_in  # noqa: F401

needs_integers = pytest.mark.skipif(
    int8.unavailable(torch.device("cpu")) is not None, reason="this processor has no exact products of 8-bit integers"
)


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "unavailable", lambda: "not here")


@pytest.fixture(params=["kernels", "torch"])
def way(request):
    """Each of the two ways to run models in int8."""
    if request.param == "torch":
        request.getfixturevalue("no_kernels")
    elif reason := kernels.unavailable():
        pytest.skip(reason)
    return request.param


def layer_of(inputs, outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def test_values_are_within_half_a_step_and_zero_is_exact():
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) + 0.5
    x[3, 4] = 0.0
    integers, scale, zero = int8.quantise(x)
    assert integers.dtype == torch.uint8 and integers.shape == x.shape
    back = scale * (integers.float() - zero)
    assert (back - x).abs().max() <= 0.51 * scale
    assert back[3, 4] == 0.0
    assert (x.max() - x.min()) / scale == pytest.approx(255)


@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.full((2, 3), 7.0), torch.full((2, 3), -7.0)])
def test_constant_values_come_back(x):
    integers, scale, zero = int8.quantise(x)
    torch.testing.assert_close(scale * (integers.float() - zero), x)


@needs_integers
@pytest.mark.parametrize("rows", [1, 7, 224])
def test_a_layer_is_the_layer_within_its_precision(rows):
    layer, x = layer_of(96, 160), torch.randn(rows, 96, generator=torch.Generator().manual_seed(1))
    wanted, residual = layer(x), torch.randn(rows, 160)
    made = int8.Int8Linear(layer)
    assert least_cosine(made.apply(x, None), wanted) > 0.9998
    assert least_cosine(made.apply_gelu(x, None), F.gelu(wanted)) > 0.9998
    summed = residual.clone()
    made.add_to(summed, x)
    assert least_cosine(summed - residual, wanted) > 0.9998
    # the coarsest of these is 1/255 of a range of about 7, summed over 96 products with weights under 0.1
    assert (made.apply(x, None) - wanted).abs().max() < 0.05


@needs_integers
def test_channels_of_very_different_weight_keep_their_own_precision():
    layer = layer_of(64, 4)
    layer.weight *= torch.tensor([1e-6, 1.0, 1e6, 0.0])[:, None]
    layer.bias.zero_()
    x = torch.randn(32, 64)
    wanted = layer(x)
    found = int8.Int8Linear(layer).apply(x, None)
    assert all(least_cosine(found[:, column], wanted[:, column]) > 0.999 for column in range(3))
    assert (found[:, 3] == 0).all()


@needs_integers
def test_what_is_not_finite_stays_so():
    made = int8.Int8Linear(layer_of(32, 8))
    for value in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(4, 32)
        x[2, 5] = value
        assert made.apply(x, None).isnan().any()


@needs_integers
def test_features_are_those_of_fp32(stand_in, way):  # noqa: F811
    exact = load_encoder(stand_in, precision="fp32", device="cpu", **SMALL)
    coarse = load_encoder(stand_in, precision="int8", device="cpu", **SMALL)
    clips = clips_of(5)
    found, wanted = coarse.encode(clips), exact.encode(clips)
    assert coarse.precision == "int8" and coarse.input_dtype == torch.float32
    assert coarse.how.startswith("compiled kernels" if way == "kernels" else "torch, not compiled kernels (not here")
    assert least_cosine(found, wanted) > 0.9995
    assert np.abs(found - wanted).max() > 1e-5, "these came from fp32"
    # whatever company a clip has
    np.testing.assert_array_equal(coarse.encode(clips[2:3]), found[2:3])


@needs_integers
def test_rows_that_are_not_finite_are_computed_again_in_fp32(way):
    made = load_encoder("random", size="vit_tiny", precision="int8", device="cpu", **SMALL)
    clips = clips_of(3)
    wanted = made.encode(clips)
    clips[1, 0, 0, 0, 0] = torch.nan
    found = made.encode(clips)
    assert np.isnan(found[1]).all() and made.exact_reruns == 1
    np.testing.assert_array_equal(found[[0, 2]], wanted[[0, 2]])


@needs_integers
def test_it_is_refused_where_it_is_too_coarse(stand_in, monkeypatch, no_kernels):  # noqa: F811
    quantise = int8.quantise
    monkeypatch.setattr(int8, "quantise", lambda x: quantise((x * 2).round() / 2))
    made = load_encoder(stand_in, precision="int8", device="cpu", **SMALL)
    with pytest.raises(ModelError, match=r"int8 is too coarse .* fp32 falls to 0\.\d+, under 0.999; use fp32"):
        made.encode(clips_of(2))
    monkeypatch.setattr(encoder, "LOWEST_COSINE", 0.5)
    made.encode(clips_of(2))


@needs_integers
def test_the_first_batch_is_computed_once_beside_its_reference_which_all_cores_share(monkeypatch):
    made = load_encoder("random", size="vit_tiny", precision="int8", device="cpu", **SMALL)
    workers, pool = [], encoder.pool

    def noted(*arguments):
        workers.append(threading.current_thread().name)
        return pool(*arguments)

    monkeypatch.setattr(encoder, "pool", noted)
    made.encode(clips_of(2 * made.batch_size))
    assert len(workers) == 3 * made.batch_size
    assert all(name.startswith("streamfeat-encode") for name in workers)


def test_it_is_refused_where_it_cannot_be():
    assert "made for CPUs" in int8.unavailable(torch.device("cuda"))


def test_it_is_refused_where_sums_are_not_exact(monkeypatch, no_kernels):
    def saturating(x, scale, zero, weight, scales, *rest):
        return torch.full((len(x), len(scales)), 1.0)

    for replacement in (saturating, None):
        int8._works.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.onednn, "qlinear_pointwise", replacement)
            with pytest.raises(ModelError, match=r"precision int8 cannot be used here: .* 8-bit integers"):
                load_encoder("random", size="vit_tiny", precision="int8", device="cpu", **SMALL)
    int8._works.cache_clear()


@needs_integers
def test_people_are_told_of_it_and_it_is_never_chosen(monkeypatch):
    monkeypatch.setattr(encoder.cpu, "gains_by_bf16", lambda: False)
    made = load_encoder("random", size="vit_tiny", device="cpu", **SMALL)
    assert made.precision == "fp32" and "int8 would be faster" in made.why["precision"]
