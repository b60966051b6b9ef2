"""The compiled blocks in 8-bit integers: what they give, for every shape, and how they are built."""

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from streamfeat.model import kernels
from streamfeat.model.vit import SIZES, ModelSize, VideoTransformer

ROOT = Path(__file__).parents[1]

#: two blocks of the smallest width
TINY = ModelSize("tiny", channels=128, blocks=2, heads=2, patch=16, hidden=512)

needs_kernels = pytest.mark.skipif(kernels.unavailable() is not None, reason=str(kernels.unavailable()))


def model_of(size, tokens, seed=0):
    """A model for ``tokens`` tokens, whose values keep about their size from layer to layer."""
    torch.manual_seed(seed)
    model = VideoTransformer(size, 2, size.patch).requires_grad_(False)
    model.positions = torch.zeros(tokens, size.channels)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.3)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def tokens_of(tokens, size, seed=1):
    return torch.randn(tokens, size.channels, generator=torch.Generator().manual_seed(seed))


def through_torch(model, x):
    with torch.inference_mode():
        x = x[None].clone()
        for block in model.blocks:
            x = block(x)
        return x[0]


def through_kernels(model, x):
    x = x.clone()
    kernels.Int8Blocks(model)(x)
    return x


def least_cosine(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=-1).min().item()


def attention_only(size, tokens, seed=0):
    """A model of one block that adds nothing but the mixed values to its tokens."""
    model = model_of(dataclasses.replace(size, blocks=1), tokens, seed)
    block = model.blocks[0]
    block.attn.proj.weight.copy_(torch.eye(size.channels))
    block.attn.proj.bias.zero_()
    block.mlp.fc2.weight.zero_()
    block.mlp.fc2.bias.zero_()
    return model


@needs_kernels
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_published_size_is_what_torch_gives(size):
    size = dataclasses.replace(size, blocks=1)
    model, x = model_of(size, 50), tokens_of(50, size)
    wanted = through_torch(model, x)
    found = through_kernels(model, x)
    assert least_cosine(found - x, wanted - x) > 0.9995
    assert (found - wanted).abs().max() > 1e-5, "these came from fp32"


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 2, 11, 12, 13, 31, 32, 33, 95, 96, 97, 191, 192, 193, 383, 385, 1568])
def test_every_number_of_tokens_is_what_torch_gives(tokens):
    model, x = model_of(TINY, tokens), tokens_of(tokens, TINY)
    wanted = through_torch(model, x)
    assert least_cosine(through_kernels(model, x) - x, wanted - x) > 0.9995


@needs_kernels
@pytest.mark.parametrize("sharpness, cosine", [(0.0, 0.9999), (1.0, 0.9998), (8.0, 0.98)])
def test_attention_flat_or_sharp_is_what_torch_gives(sharpness, cosine):
    model, x = attention_only(TINY, 600), tokens_of(600, TINY)
    model.blocks[0].attn.qkv.weight[:128] *= sharpness
    model.blocks[0].attn.qkv.bias[:128] *= sharpness
    wanted = through_torch(model, x) - x
    assert least_cosine(through_kernels(model, x) - x, wanted) > cosine


@needs_kernels
def test_many_small_weights_beside_a_large_one_are_not_lost():
    """A thousand keys of which each has a thousandth of the best one's weight have together as much as it."""
    tokens, width = 1001, 64
    size = dataclasses.replace(TINY, blocks=1)
    model = attention_only(size, tokens)
    block, logit = model.blocks[0], torch.log(torch.tensor(1000.0))
    x = torch.zeros(tokens, size.channels)
    x[:, 0], x[:, 1] = 1.0, -1.0
    x[0, 0], x[0, 1] = -1.0, 1.0
    block.norm1.weight.fill_(1.0)
    block.norm1.bias.zero_()
    normed = block.norm1(x)
    amount = normed[0, 1]
    block.attn.qkv.weight.zero_()
    block.attn.qkv.bias.zero_()
    for head in range(size.heads):
        block.attn.qkv.bias[head * width] = width**0.5  # each query looks for one channel
        block.attn.qkv.weight[size.channels + head * width, 1] = logit / amount / 2  # of which the first key has much
        block.attn.qkv.weight[2 * size.channels + head * width, 1] = 1.0 / amount  # and another value
    wanted = through_torch(model, x) - x
    assert wanted[0, 0].abs() < 0.01, "half of the weight is the first key's"
    torch.testing.assert_close(through_kernels(model, x) - x, wanted, atol=0.03, rtol=0)


@needs_kernels
def test_what_all_keys_have_in_common_costs_no_precision():
    model, x = attention_only(TINY, 400), tokens_of(400, TINY)
    without = through_kernels(attention_only(TINY, 400), x) - x
    model.blocks[0].attn.qkv.bias[128:256] += 1000 * torch.randn(128, generator=torch.Generator().manual_seed(2))
    assert least_cosine(through_kernels(model, x) - x, without) > 0.9999


@needs_kernels
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_tokens_of_any_size_keep_their_precision(scale):
    model, x = attention_only(TINY, 40), scale * tokens_of(40, TINY)
    wanted = through_torch(model, x)
    torch.testing.assert_close(through_kernels(model, x), wanted, atol=0.1, rtol=0.01)


@needs_kernels
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("token", [0, 199])
def test_what_is_not_finite_stays_so(value, token):
    model, x = model_of(TINY, 200), tokens_of(200, TINY)
    blocks, wanted = kernels.Int8Blocks(model), x.clone()
    blocks(wanted)
    bad = x.clone()
    bad[token, :2] = torch.tensor([value, -value])  # 3e38 is finite, but its square is not
    blocks(bad)
    assert bad.isnan().all()
    # and leaves nothing behind
    blocks(x)
    torch.testing.assert_close(x, wanted, atol=0, rtol=0)


@needs_kernels
def test_values_beyond_the_last_layer_are_found_too():
    model, x = model_of(dataclasses.replace(TINY, blocks=1), 20), tokens_of(20, TINY)
    model.blocks[0].mlp.fc2.bias[3] = torch.inf
    assert through_kernels(model, x).isfinite().all(1).logical_not().all()


@needs_kernels
def test_threads_do_not_disturb_each_other():
    blocks = kernels.Int8Blocks(model_of(TINY, 300))
    inputs = [tokens_of(300, TINY, seed) for seed in range(12)]

    def run(x):
        x = x.clone()
        blocks(x)
        return x

    wanted = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, expected in zip(pool.map(run, inputs), wanted, strict=True):
                torch.testing.assert_close(found, expected, atol=0, rtol=0)


@needs_kernels
def test_gelu_is_exact_within_what_activations_keep():
    size = dataclasses.replace(TINY, blocks=1)
    model, x = attention_only(size, 500), tokens_of(500, size)
    block = model.blocks[0]
    block.attn.proj.weight.zero_()
    block.mlp.fc1.weight.zero_()
    block.mlp.fc1.bias.copy_(torch.linspace(-8, 8, size.hidden))
    block.mlp.fc2.weight[:, :128] = torch.eye(128)
    wanted = F.gelu(block.mlp.fc1.bias[:128])
    # a step of bytes is 8 / 127
    torch.testing.assert_close((through_kernels(model, x) - x)[7], wanted, atol=0.5 * 8 / 127 + 1e-5, rtol=0)


@needs_kernels
def test_shapes_that_are_not_provided_for_are_refused():
    for odd in (dict(channels=96, heads=2), dict(hidden=500), dict(hidden=16384)):
        with pytest.raises(ValueError, match="not made for"):
            kernels.Int8Blocks(model_of(dataclasses.replace(TINY, blocks=1, **odd), 4))


def test_published_sizes_are_all_provided_for():
    if (library := kernels._library()) is not None:
        for size in SIZES.values():
            assert library.streamfeat_fits(size.heads, size.channels // size.heads, size.hidden), size.name


def build(folder, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder / "temp"],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )


def test_without_a_compiler_all_else_is_installed(tmp_path, monkeypatch):
    done = build(tmp_path, CC="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("_int8*"))
    monkeypatch.setattr(kernels, "_library", lambda: None)
    assert "without a C compiler" in kernels.unavailable()


def test_the_build_needs_no_headers_of_python_and_warns_of_nothing(tmp_path):
    done = build(tmp_path, CFLAGS="-Wall -Wextra -Werror")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("_int8*.so")), done.stderr
    sources = [path.read_text() for path in Path(kernels.__file__).parent.glob("*.[ch]")]
    assert len(sources) == 6 and not any("Python.h" in source for source in sources)
