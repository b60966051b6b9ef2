"""Folders of numbered frames: OpenCV's pixels, in order, or an error that names the frame."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from streamfeat.decode.base import DecodeError
from streamfeat.decode.images import ImageDecoder, read_image
from streamfeat.recipe import Recipe
from streamfeat.videos import Video

from .media import picture, read_index

CPU = torch.device("cpu")
#: leaves 64 x 64 pixels as they are, but for the scale 0..1
UNCHANGED = Recipe(image_size=64, upscale_below=None, mean=(0, 0, 0), std=(1, 1, 1))


def open_folder(folder, recipe=UNCHANGED):
    return ImageDecoder().open(Video("name", folder, "frames"), recipe, CPU)


def decode(folder, recipe=UNCHANGED):
    """Frames on the scale 0..255, ``(n, h, w, 3)``."""
    stream = open_folder(folder, recipe)
    frames = torch.cat(list(stream)) * 255
    assert stream.info.frames == len(frames)
    stream.close()
    return frames.permute(0, 2, 3, 1).numpy()


def indices(folder):
    return [read_index(frame.astype(np.uint8)) for frame in decode(folder)]


def reason(folder):
    """Why the folder cannot be decoded, be it found when it is opened or on the way."""
    with pytest.raises(DecodeError) as caught:
        stream = open_folder(folder)
        try:
            list(stream)
        finally:
            stream.close()
    text = str(caught.value)
    assert text and "\n" not in text and str(folder) not in text
    return text


def write_frames(folder, names, size=(64, 64), first=0):
    for index, name in enumerate(names, first):
        Image.fromarray(picture(index, *size)).save(folder / name)


# pixels -------------------------------------------------------------------------------------------------------------


def assert_as_opencv(path):
    expected = cv2.imread(str(path))
    assert expected is not None
    assert np.array_equal(read_image(path), expected[..., ::-1])


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "JPG", "png", "bmp", "tif", "tiff"])
def test_pixels_are_those_of_opencv(extension, tmp_path):
    write_frames(tmp_path, [f"frame_{n}.{extension}" for n in range(3)], size=(97, 65))
    for path in tmp_path.iterdir():
        assert_as_opencv(path)


@pytest.mark.parametrize("options", [{"quality": 20}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
def test_jpeg_of_any_kind(options, tmp_path):
    Image.fromarray(picture(5, 97, 65)).save(tmp_path / "0.jpg", **options)
    assert_as_opencv(tmp_path / "0.jpg")


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "tif"])
def test_grey(extension, tmp_path):
    Image.fromarray(picture(5)).convert("L").save(tmp_path / f"0.{extension}")
    assert_as_opencv(tmp_path / f"0.{extension}")


@pytest.mark.parametrize("extension", ["png", "bmp"])
def test_palette(extension, tmp_path):
    Image.fromarray(picture(5)).quantize(32).save(tmp_path / f"0.{extension}")
    assert_as_opencv(tmp_path / f"0.{extension}")


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_transparency_is_left_out(extension, tmp_path):
    half_seen = np.dstack([picture(5), np.tile(np.arange(96, dtype=np.uint8), (64, 1))])
    Image.fromarray(half_seen).save(tmp_path / f"0.{extension}")
    assert np.array_equal(read_image(tmp_path / f"0.{extension}"), picture(5))
    # of TIFF, OpenCV multiplies the colours with it
    if extension == "png":
        assert_as_opencv(tmp_path / "0.png")


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits(extension, channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (40, 50, channels), dtype=np.uint16)
    path = tmp_path / f"0.{extension}"
    cv2.imwrite(str(path), values)
    image = read_image(path)
    assert np.array_equal(image, np.broadcast_to(values[..., ::-1] >> 8, image.shape))
    # OpenCV cuts 16 bits to 8 as well, but for colour in TIFF, where since version 5 it rounds
    difference = np.abs(image.astype(int) - cv2.imread(str(path))[..., ::-1]).max()
    assert difference <= (1 if (extension, channels) == ("tif", 3) else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(5, 97, 65)).save(tmp_path / "0.jpg", exif=exif)
    assert_as_opencv(tmp_path / "0.jpg")
    assert read_image(tmp_path / "0.jpg").shape == ((65, 97, 3) if orientation < 5 else (97, 65, 3))


def test_what_the_stream_gives_is_those_pixels(tmp_path):
    write_frames(tmp_path, [f"{n:03}.png" for n in range(20)])
    frames = decode(tmp_path)
    np.testing.assert_allclose(frames, [picture(n, 64, 64) for n in range(20)], atol=1e-4)
    bgr = decode(tmp_path, UNCHANGED.replace(channel_order="bgr"))
    np.testing.assert_array_equal(bgr, frames[..., ::-1])


# which frames, in which order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 317])
def test_numbers_may_start_anywhere(first, tmp_path):
    """The published script writes from img_00001, its documentation shows img_00000."""
    write_frames(tmp_path, [f"img_{n:05}.jpg" for n in range(first, first + 20)])
    assert indices(tmp_path) == list(range(20))


@pytest.mark.parametrize("pattern", ["{}.png", "frame{}.png", "img_{:05}.png", "clip-7_{}.png", "12_{}_raw.png"])
def test_natural_order(pattern, tmp_path):
    """Written in another order than that of their numbers."""
    for number in (9, 10, 100, 99, 11, *range(12, 99), *range(1, 9)):
        Image.fromarray(picture(number, 64, 64)).save(tmp_path / pattern.format(number))
    assert indices(tmp_path) == list(range(1, 101))


def test_what_is_no_frame_is_left_out(tmp_path):
    write_frames(tmp_path, ["1.png", "2.png"])
    for name in ("notes1.txt", "Thumbs.db", ".3.png", "._1.png", "cover.png"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "3.png").mkdir()
    assert indices(tmp_path) == [0, 1]


def test_a_large_number(tmp_path):
    write_frames(tmp_path, [f"{10**20 + n}.png" for n in range(3)])
    assert indices(tmp_path) == [0, 1, 2]


def test_every_fifth_frame_kept(tmp_path):
    write_frames(tmp_path, [f"img_{n}.png" for n in range(0, 50, 5)])
    assert indices(tmp_path) == list(range(10))


def test_times_for_names(tmp_path):
    """Steps that differ mostly are no numbering, in which something could be missing."""
    write_frames(tmp_path, [f"{n}.png" for n in (0, 33, 67, 101, 134, 166, 200)])
    assert indices(tmp_path) == list(range(7))


def test_info(tmp_path):
    write_frames(tmp_path, [f"{n}.jpg" for n in range(20)], size=(97, 65))
    stream = open_folder(tmp_path)
    info = stream.info
    assert (info.width, info.height, info.fps, info.codec, info.decoder) == (97, 65, 0.0, "jpeg", "images")
    assert (info.frames_hint, info.frames) == (20, 0)
    assert [len(chunk) for chunk in stream] == [16, 4]
    assert (info.frames, info.damaged_packets) == (20, 0)
    stream.close()


@pytest.mark.parametrize("mixed", [["1.jpg", "2.png"], ["a1.png", "b1.png"]])
def test_mixed_names_and_formats(mixed, tmp_path):
    write_frames(tmp_path, mixed)
    assert len(indices(tmp_path)) == 2


# refusals -----------------------------------------------------------------------------------------------------------


def test_mixed_sizes(tmp_path):
    write_frames(tmp_path, [f"img_{n}.png" for n in range(30)])
    write_frames(tmp_path, ["img_21.png"], size=(32, 48))
    assert reason(tmp_path) == "frame img_21.png is 32 x 48 pixels, those before it 64 x 64"


@pytest.mark.parametrize("gap", [1, 7, 18])
def test_a_gap_in_the_numbers(gap, tmp_path):
    write_frames(tmp_path, [f"img_{n}.png" for n in range(20) if n != gap])
    text = reason(tmp_path)
    assert f"frames are missing between img_{gap - 1}.png and img_{gap + 1}.png" in text
    assert "add them" in text


def test_a_number_twice(tmp_path):
    write_frames(tmp_path, ["img_1.png", "img_2.png", "img_02.png", "img_3.png"])
    assert reason(tmp_path) == "two frames have one number: img_02.png and img_2.png"


@pytest.mark.parametrize(
    ("content", "which"), [(b"", "empty"), (b"<html>no image</html>", "text"), (None, "cut off")], ids=lambda v: v
)
@pytest.mark.parametrize("number", [0, 11])
@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "tif"])
def test_broken_image(content, which, number, extension, tmp_path):
    write_frames(tmp_path, [f"img_{n:02}.{extension}" for n in range(20)])
    broken = tmp_path / f"img_{number:02}.{extension}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2] if content is None else content)
    assert reason(tmp_path) == f"frame img_{number:02}.{extension} is damaged or no image"


def test_an_image_that_would_fill_the_memory(tmp_path):
    """A few bytes that claim to be 60000 x 60000 pixels."""
    header = b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452 0000ea60 0000ea60 0802000000")
    (tmp_path / "1.png").write_bytes(header + b"\0" * 100)
    assert reason(tmp_path) == "frame 1.png is damaged or no image"


def test_a_frame_that_vanishes(tmp_path):
    write_frames(tmp_path, [f"{n}.png" for n in range(30)])
    stream = open_folder(tmp_path)
    (tmp_path / "25.png").unlink()
    with pytest.raises(DecodeError, match=r"^frame 25\.png has vanished$"):
        list(stream)
    stream.close()


def test_a_folder_that_vanished(tmp_path):
    assert reason(tmp_path / "gone") == "No such file or directory"


def test_a_folder_that_was_emptied(tmp_path):
    assert reason(tmp_path) == "no numbered frames in it any more"


def test_undecodable_name(tmp_path):
    write_frames(tmp_path, ["img_1.png", "img_2.png"])
    os.rename(tmp_path / "img_2.png", os.fsencode(tmp_path) + b"/img_\xff2.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/img_\xff2.png")).write_bytes(b"")
    assert reason(tmp_path) == "frame img_\\udcff2.png is damaged or no image"


# resources ----------------------------------------------------------------------------------------------------------


def test_close_midway_and_twice(tmp_path):
    write_frames(tmp_path, [f"{n}.png" for n in range(40)])
    stream = open_folder(tmp_path)
    assert len(next(iter(stream))) == 16 and stream.info.frames == 16
    stream.close()
    stream.close()
    assert len(os.listdir(tmp_path)) == 40


def test_only_a_few_images_are_read_ahead(tmp_path):
    write_frames(tmp_path, [f"{n:02}.png" for n in range(40)])
    stream = open_folder(tmp_path)
    for path in sorted(tmp_path.iterdir())[25:]:
        path.unlink()
    assert len(next(iter(stream))) == 16
    stream.close()
