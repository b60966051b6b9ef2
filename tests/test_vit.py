"""The network against an independent, plain implementation of the published one."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from streamfeat.model.vit import SIZES, ModelError, ModelSize, VideoTransformer, parameter_shapes, sincos_positions
from tests.plain_videomae import plain_features, plain_positions

# Few blocks and channels, but the patch and head sizes of the published models (giant: patch 14, heads of 88).
SMALL = {
    "base": ModelSize("base", channels=128, blocks=2, heads=2, patch=16, hidden=512),
    "giant": ModelSize("giant", channels=176, blocks=2, heads=2, patch=14, hidden=768),
}


def randomised(size, clip_frames, image_size, seed=0):
    torch.manual_seed(seed)
    model = VideoTransformer(size, clip_frames, image_size).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        value.normal_(mean=float("norm" in name and "weight" in name), std=0.3 if value.ndim == 1 else 0.08)
    return model


def published_names(model):
    """The state dict as the published code would hold it: q_bias and v_bias apart. The key has no bias there."""
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("qkv.bias"):
            q, k, v = value.chunk(3)
            k.zero_()
            state[name.replace("qkv.bias", "q_bias")], state[name.replace("qkv.bias", "v_bias")] = q, v
        else:
            state[name] = value
    return state


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("clip_frames, patches", [(16, 4), (2, 1), (6, 3)])
def test_equals_the_plain_implementation(name, clip_frames, patches):
    size = SMALL[name]
    model = randomised(size, clip_frames, patches * size.patch)
    state = published_names(model)
    clips = torch.randn(2, 3, clip_frames, patches * size.patch, patches * size.patch)
    wanted = plain_features(state, clips, size.heads)
    assert wanted.std() > 0.1
    torch.testing.assert_close(model.forward_features(clips), wanted, rtol=1e-4, atol=1e-4)
    normed = torch.nn.functional.layer_norm(
        wanted.mean(1), (size.channels,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    torch.testing.assert_close(model(clips), normed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens, channels", [(1568, 384), (2048, 176), (7, 10), (1, 2)])
def test_positions_are_the_published_ones(tokens, channels):
    np.testing.assert_allclose(sincos_positions(tokens, channels).numpy(), plain_positions(tokens, channels), atol=1e-6)


def test_sizes_have_the_published_numbers_of_parameters():
    # Millions with the 710-class head, from the model zoo of VideoMAE V2.
    published = {"vit_s": 22.2, "vit_b": 86.8, "vit_l": 304.6, "vit_h": 632.5, "vit_g": 1012.6}
    for name, millions in published.items():
        size = SIZES[name]
        shapes = parameter_shapes(size)
        count = sum(torch.Size(shape).numel() for shape in shapes.values()) + 710 * (size.channels + 1)
        count -= size.blocks * size.channels  # the key's third of the biases, which is zero
        assert round(count / 1e6, 1) == millions, name


def test_tokens_of_the_published_sizes():
    assert [int(np.prod(SIZES[name].grid(16, 224))) for name in ("vit_b", "vit_g")] == [1568, 2048]


def test_flops_count_what_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    size = SMALL["giant"]
    model = randomised(size, 4, 56)
    # Torch does not count its fused attention on CPUs, but does the products that it stands for.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward_features(torch.zeros(1, 3, 4, 56, 56))
    assert size.flops(4, 56) == counter.get_total_flops()


@pytest.mark.parametrize("clip_frames, image_size, told", [
    (15, 224, "multiple of 2"), (0, 224, "multiple of 2"), (16, 225, "use 224 or 240"), (16, 10, "use 16 or 32")])
def test_what_does_not_divide_into_tokens_is_refused(clip_frames, image_size, told):
    with pytest.raises(ModelError, match=told) as error:
        VideoTransformer(SIZES["vit_tiny"], clip_frames, image_size)
    assert "\n" not in str(error.value)


def test_sizes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SIZES["vit_b"].channels = 1


def test_timm_makes_every_size():
    import timm

    from streamfeat.model import registry

    assert set(registry.NAMES.values()) == set(SIZES)
    assert set(registry.NAMES) <= set(timm.list_models("videomaev2*"))
    model = timm.create_model("videomaev2_tiny_patch16_224", clip_frames=4, img_size=32)
    assert model(torch.zeros(2, 3, 4, 32, 32)).shape == (2, SIZES["vit_tiny"].channels)
    with torch.device("meta"):
        for name, size in registry.NAMES.items():
            assert timm.create_model(name).num_features == SIZES[size].channels
    with pytest.raises(TypeError, match="num_frames"):
        timm.create_model("videomaev2_tiny_patch16_224", num_frames=4)


def test_importing_the_encoder_does_not_import_timm():
    code = "import sys, streamfeat.model.encoder; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
