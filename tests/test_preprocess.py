"""The geometry of recipes, held to OpenCV's, torch's and torchvision's own resizing."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as vision

from streamfeat.decode import preprocess as preprocess_module
from streamfeat.decode import resize
from streamfeat.decode.base import MAX_CHUNK_BYTES, MAX_CHUNK_FRAMES, DecodeError, frames_per_chunk
from streamfeat.decode.geometry import MAX_PIXELS, frame_size
from streamfeat.decode.preprocess import NumpyResize, Preprocessor, upscale_bytes
from streamfeat.decode.preprocess_cuda import DevicePreprocessor
from streamfeat.recipe import IMAGENET_MEAN, IMAGENET_STD, PRESETS, Recipe

#: width, height
SIZES = [(320, 240), (1920, 1080), (240, 320), (226, 226), (97, 65), (856, 480), (31, 97), (3, 2), (1, 1), (640, 360)]


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def preprocess(recipe, frame, order="rgb"):
    preprocessor = Preprocessor(recipe, frame.shape[1], frame.shape[0], order)
    out = np.empty((3, *preprocessor.size), np.float32)
    preprocessor.write(frame, out)
    return out


def as_tensor(frame):
    """On the 0..1 scale, ``(1, 3, h, w)``.

    In float64: in float32 torch rounds the coordinates, too, by up to 1e-4 of a pixel in wide frames.
    """
    return torch.from_numpy(frame).permute(2, 0, 1)[None].double() / 255


# scaling up on bytes ------------------------------------------------------------------------------------------------


def assert_scaled_up_as_opencv(width, height, target):
    factor = target / min(width, height)
    frame = noise(width, height, seed=width * 1000 + height)
    expected = cv2.resize(frame, (0, 0), fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    result = upscale_bytes(frame, factor)
    assert result.dtype == np.uint8 and result.shape == expected.shape
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) < 226])
def test_bytes_are_scaled_up_as_opencv_does(size):
    assert_scaled_up_as_opencv(*size, 226)


@settings(max_examples=150, deadline=None)
@given(short=st.integers(1, 225), ratio=st.floats(1, 4), tall=st.booleans())
@example(short=1, ratio=1.0, tall=False)
@example(short=1, ratio=4.0, tall=True)
@example(short=225, ratio=1.0, tall=False)
@example(short=113, ratio=1.5, tall=True)
def test_bytes_of_any_size_are_scaled_up_as_opencv_does(short, ratio, tall):
    long = round(short * ratio)
    assert_scaled_up_as_opencv(*((short, long) if tall else (long, short)), 226)


@settings(max_examples=40, deadline=None)
@given(short=st.integers(1, 200), more=st.integers(1, 300), long=st.integers(0, 100))
def test_other_targets_are_scaled_up_to_as_opencv_does(short, more, long):
    assert_scaled_up_as_opencv(short + long * short // 50, short, short + more)


def test_extreme_values_do_not_overflow():
    for frame in (np.full((7, 9, 3), 255, np.uint8), np.zeros((7, 9, 3), np.uint8)):
        assert (upscale_bytes(frame, 226 / 7) == frame[0, 0, 0]).all()


# the published geometry ---------------------------------------------------------------------------------------------


def published(frame):
    """``[-1, 1]``, ``(3, 224, 224)``: what the published reader does to an image, in its own channel order."""
    short = min(frame.shape[:2])
    if short < 226:
        frame = cv2.resize(frame, (0, 0), fx=226 / short, fy=226 / short)
    frame = (frame / 255.0) * 2 - 1
    return cv2.resize(frame, (224, 224)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_wsvad_is_the_published_geometry(size):
    frame = noise(*size)
    np.testing.assert_allclose(preprocess(Recipe(), frame), published(frame), atol=2e-5)


def test_fed_wsvad_sees_blue_first():
    frame = noise(320, 240)
    recipe = PRESETS["fed-wsvad"].recipe
    np.testing.assert_allclose(preprocess(recipe, frame), published(frame[..., ::-1]), atol=2e-5)
    np.testing.assert_array_equal(preprocess(recipe, frame), preprocess(Recipe(), frame)[::-1])


# stretching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (3840, 2160), (224, 224), (225, 223)])
def test_stretching_is_that_of_torch(size):
    """As in extract_tad_feature.py: no antialiasing, whatever the size."""
    frame = noise(*size)
    expected = torch.nn.functional.interpolate(
        as_tensor(frame), size=(224, 224), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(preprocess(PRESETS["thumos14"].recipe, frame), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("size", [*SIZES, (3840, 2160)])
def test_stretching_is_that_of_torch_in_float32_but_for_its_rounding(size):
    frame = noise(*size)
    expected = torch.nn.functional.interpolate(
        as_tensor(frame).float(), size=(224, 224), mode="bilinear", align_corners=False
    )[0]
    rounding = 2e-6 + max(size) * 2**-23
    np.testing.assert_allclose(preprocess(PRESETS["thumos14"].recipe, frame), expected.numpy(), atol=rounding)


@pytest.mark.parametrize("size", SIZES)
def test_stretching_is_that_of_opencv_on_floats(size):
    frame = noise(*size)
    expected = cv2.resize(frame.astype(np.float32) / 255, (224, 224)).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocess(PRESETS["thumos14"].recipe, frame), expected, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 500), height=st.integers(1, 500), size=st.sampled_from([14, 32, 100, 224]))
def test_stretching_any_size_is_that_of_torch(width, height, size):
    frame = noise(width, height)
    recipe = Recipe(image_size=size, upscale_below=None)
    expected = torch.nn.functional.interpolate(
        as_tensor(frame) * 2 - 1, size=(size, size), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(preprocess(recipe, frame), expected.numpy(), atol=2e-5)


def test_a_frame_of_the_right_size_is_left_alone():
    frame = noise(224, 224)
    recipe = Recipe(upscale_below=None, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(preprocess(recipe, frame) * 255, frame.transpose(2, 0, 1), atol=1e-4)


# crops --------------------------------------------------------------------------------------------------------------


def resized(frame, short):
    return vision.resize(as_tensor(frame), short, interpolation=vision.InterpolationMode.BILINEAR, antialias=False)


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_center_crop_is_that_of_torchvision(size):
    frame = noise(*size)
    expected = vision.center_crop(resized(frame, 224), [224, 224])[0].numpy()
    expected = (expected - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    result = preprocess(PRESETS["kinetics"].recipe, frame)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_center_crop_takes_the_middle_and_keeps_the_aspect_ratio():
    frame = np.zeros((100, 300, 3), np.uint8)
    frame[:, 100:200] = 255
    result = preprocess(Recipe(resize="center-crop", upscale_below=None, image_size=50), frame)
    assert (result[:, :, 1:-1] == 1).all()
    frame[:, 100:200], frame[:, :99], frame[:, 201:] = 0, 255, 255
    assert (preprocess(Recipe(resize="center-crop", upscale_below=None, image_size=50), frame) == -1).all()


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (97, 65), (1920, 1080)])
def test_resize_short_with_one_crop(size):
    frame = noise(*size)
    expected = vision.center_crop(resized(frame, 256), [224, 224])[0].numpy()
    recipe = Recipe(upscale_below=None, resize_short=256, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(preprocess(recipe, frame), expected, atol=2e-5)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (97, 65), (1920, 1080), (225, 223)])
@pytest.mark.parametrize("crops", [5, 10])
def test_several_crops_are_cut_from_the_whole_resized_frame(size, crops):
    """What comes out is all that torchvision's FiveCrop and TenCrop then cut from."""
    frame = noise(*size)
    recipe = Recipe(upscale_below=None, resize_short=256, crops=crops)
    expected = resized(frame, 256)[0].numpy() * 2 - 1
    assert frame_size(recipe, *size) == expected.shape[1:]
    np.testing.assert_allclose(preprocess(recipe, frame), expected, atol=2e-5)


def test_scaling_up_comes_before_resizing_to_the_short_side():
    frame = noise(160, 120)
    recipe = Recipe(resize_short=256, crops=10)
    scaled = upscale_bytes(frame, 226 / 120)
    expected = preprocess(recipe.replace(upscale_below=None), scaled)
    np.testing.assert_array_equal(preprocess(recipe, frame), expected)


# colour -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("wanted", ["rgb", "bgr"])
def test_channel_order(order, wanted):
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., order.index("r")] = 255
    result = preprocess(Recipe(channel_order=wanted, image_size=14), red, order)
    assert (result[wanted.index("r")] == 1).all()
    assert (np.delete(result, wanted.index("r"), axis=0) == -1).all()


def test_mean_and_std_are_per_channel_in_the_recipes_order():
    grey = np.full((20, 20, 3), 51, np.uint8)
    recipe = Recipe(image_size=14, upscale_below=None, channel_order="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    result = preprocess(recipe, grey)
    for channel, value in enumerate([0.2, 0.0, -0.5]):
        np.testing.assert_allclose(result[channel], value, atol=1e-6)


# streams ------------------------------------------------------------------------------------------------------------


def test_frames_that_change_their_size_come_out_alike():
    recipe = Recipe(image_size=32)
    sizes = [(320, 240), (97, 65), (64, 300), (320, 240), (640, 480), (31, 31), (320, 240)]
    frames = [noise(*size) for size in sizes]
    preprocessor = Preprocessor(recipe, *sizes[0])
    (chunk,) = preprocessor.chunks(frames, torch.device("cpu"))
    assert chunk.shape == (7, 3, 32, 32)
    for result, frame in zip(chunk, frames, strict=True):
        np.testing.assert_array_equal(result.numpy(), preprocess(recipe, frame))


def test_crops_of_frames_that_change_their_shape_have_the_first_ones_size():
    recipe = Recipe(upscale_below=None, resize_short=64, image_size=56, crops=5)
    preprocessor = Preprocessor(recipe, 320, 240)
    (chunk,) = preprocessor.chunks([noise(320, 240), noise(240, 320)], torch.device("cpu"))
    assert chunk.shape == (2, 3, *preprocessor.size) == (2, 3, 64, 85)
    stretched = torch.nn.functional.interpolate(
        as_tensor(noise(240, 320)) * 2 - 1, size=(64, 85), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(chunk[1].numpy(), stretched.numpy(), atol=2e-5)


@pytest.mark.parametrize(("frames", "lengths"), [(0, []), (1, [1]), (16, [16]), (17, [16, 1]), (40, [16, 16, 8])])
def test_chunks(frames, lengths):
    preprocessor = Preprocessor(Recipe(image_size=14, upscale_below=None), 20, 20)
    pictures = [np.full((20, 20, 3), index, np.uint8) for index in range(frames)]
    chunks = list(preprocessor.chunks(iter(pictures), torch.device("cpu")))
    assert [len(chunk) for chunk in chunks] == lengths
    assert all(chunk.shape[1:] == (3, 14, 14) and chunk.dtype == torch.float32 for chunk in chunks)
    values = [round((float(frame.mean()) + 1) / 2 * 255) for chunk in chunks for frame in chunk]
    assert values == list(range(frames))


def test_chunks_stay_small():
    assert frames_per_chunk(224, 224) == MAX_CHUNK_FRAMES
    assert frames_per_chunk(2048, 2048) == 1
    assert 1 < frames_per_chunk(1024, 1024) * 3 * 4 * 1024 * 1024 <= MAX_CHUNK_BYTES


# on the model's device ----------------------------------------------------------------------------------------------


def on_device(recipe, width, height, frames, order="rgb"):
    """As for a GPU, whose tensors and operations are torch's on a CPU too."""
    size = frame_size(recipe, width, height)
    channels = np.asarray([order.index(channel) for channel in recipe.channel_order])
    return list(DevicePreprocessor(recipe, size, channels, torch.device("cpu")).chunks(iter(frames)))


@pytest.mark.parametrize("recipe", [preset.recipe for preset in PRESETS.values()], ids=list(PRESETS))
@pytest.mark.parametrize("size", SIZES)
def test_a_device_gives_the_same_to_the_last_bit(recipe, size):
    frames = [noise(*size, seed) for seed in range(2)]
    (chunk,) = on_device(recipe, *size, frames, "bgr")
    assert chunk.dtype == torch.float32
    for result, frame in zip(chunk, frames, strict=True):
        np.testing.assert_array_equal(result.numpy(), preprocess(recipe, frame, "bgr"))


def test_a_device_gives_frames_that_change_their_size_alike():
    recipe = Recipe(image_size=32)
    sizes = [(320, 240), (320, 240), (97, 65), (64, 300), (64, 300), (320, 240)]
    frames = [noise(*size, seed) for seed, size in enumerate(sizes)]
    chunks = on_device(recipe, *sizes[0], frames)
    assert [len(chunk) for chunk in chunks] == [2, 1, 2, 1]
    for result, frame in zip(torch.cat(chunks), frames, strict=True):
        np.testing.assert_array_equal(result.numpy(), preprocess(recipe, frame))


def test_a_device_gets_chunks_that_stay_small():
    frames = [np.full((20, 20, 3), index, np.uint8) for index in range(40)]
    chunks = on_device(Recipe(image_size=14, upscale_below=None), 20, 20, frames)
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert [round((float(frame.mean()) + 1) / 2 * 255) for chunk in chunks for frame in chunk] == list(range(40))
    large = [np.zeros((2000, 2000, 3), np.uint8)] * 5
    chunks = on_device(Recipe(), 2000, 2000, large)
    assert [len(chunk) for chunk in chunks] == [2, 2, 1] and 2 * large[0].nbytes <= MAX_CHUNK_BYTES
    assert on_device(Recipe(), 20, 20, []) == []


# limits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100_000, 1), (1, 4000), (3000, 2), (50_000, 100)])
@pytest.mark.parametrize("recipe", [Recipe(), PRESETS["wsvad-10crop"].recipe, PRESETS["kinetics"].recipe])
def test_absurd_aspect_ratio(size, recipe):
    width, height = size
    short, long = sorted(size)
    target = recipe.upscale_below or recipe.resize_short or recipe.image_size
    if (target / short) ** 2 * short * long <= MAX_PIXELS:
        assert frame_size(recipe, width, height)
        return
    with pytest.raises(DecodeError, match=f"frames of {width} x {height} pixels would become .* too much"):
        Preprocessor(recipe, width, height)


def test_an_absurd_frame_in_mid_stream():
    preprocessor = Preprocessor(Recipe(), 320, 240)
    with pytest.raises(DecodeError, match="too much"):
        list(preprocessor.chunks([noise(320, 240), noise(4000, 1)], torch.device("cpu")))


@pytest.mark.parametrize("recipe", [preset.recipe for preset in PRESETS.values()], ids=list(PRESETS))
@pytest.mark.parametrize("size", [(7680, 4320), (16384, 16384), (1, 1), (8192, 64)])
def test_large_and_tiny_frames_are_not_absurd(recipe, size):
    assert min(frame_size(recipe, *size)) >= 224


# in C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not resize.is_available(), reason="streamfeat was installed without a C compiler")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 700), height=st.integers(1, 700), name=st.sampled_from(sorted(PRESETS)),
    side=st.sampled_from([None, 14, 33, 224]), order=st.sampled_from(["rgb", "bgr"]), padding=st.integers(0, 70),
    flipped=st.booleans(),
)
@example(width=1, height=1, name="wsvad", side=None, order="rgb", padding=0, flipped=False)
@example(width=2, height=700, name="xd-5crop", side=None, order="bgr", padding=1, flipped=True)
def test_resizing_in_c_gives_the_same_to_the_last_bit(
    monkeypatch, width, height, name, side, order, padding, flipped
):
    recipe = PRESETS[name].recipe
    if side is not None:
        short = None if recipe.resize_short is None else side + 4
        recipe = dataclasses.replace(recipe, image_size=side, resize_short=short)
    frame = noise(width + padding, height, seed=width * height)[:, :width]
    if flipped:
        frame = frame[::-1, ::-1]
    found = []
    for available in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(preprocess_module, "is_available", lambda available=available: available)
            try:
                found.append(preprocess(recipe, frame, order))
            except DecodeError:  # a strip that would become too large
                return
    assert np.array_equal(*found)


def test_resizing_is_done_by_numpy_where_nothing_was_compiled(monkeypatch):
    monkeypatch.setattr(resize.compiled, "load", lambda name: None)
    resize._function.cache_clear()
    try:
        assert not resize.is_available()
        _, made = Preprocessor(PRESETS["wsvad"].recipe, 320, 240)._plan(320, 240)
        assert isinstance(made, NumpyResize)
    finally:
        resize._function.cache_clear()
