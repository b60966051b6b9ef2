"""Folders of numbered frames, as ShanghaiTech's test half is published."""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from streamfeat.decode.base import DecodeError, StreamInfo
from streamfeat.decode.preprocess import Preprocessor
from streamfeat.videos import list_frames, printable

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

_MAX_THREADS = 4


class ImageDecoder:
    """Decodes the images of a folder in natural order of their names, reading a few ahead.

    Pixels equal those of OpenCV's ``imread``, orientation from EXIF included. Images of different sizes, a
    missing number and an image that cannot be decoded whole are errors: each would shift or spoil what the
    frames mean, and labels are counted by frame.
    """

    name = "images"

    def open(self, video: Video, recipe: Recipe, device: torch.device) -> ImageStream:
        return ImageStream(video, recipe, device)


class ImageStream:
    """The frames of one folder."""

    def __init__(self, video: Video, recipe: Recipe, device: torch.device) -> None:
        try:
            paths = list_frames(video.path)
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error
        if not paths:
            raise DecodeError("no numbered frames in it any more")
        _check_numbers([path.name for path in paths])

        self._device = device
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "images")
        self._pictures = self._read_ahead(paths)
        try:
            first = next(self._pictures)
            height, width = first.shape[:2]
            self._preprocessor = Preprocessor(recipe, width, height, order="rgb")
        except BaseException:
            self.close()
            raise
        self._pictures = itertools.chain([first], self._pictures)
        kind = Image.registered_extensions()[paths[0].suffix.lower()].lower()
        self.info = StreamInfo(
            width, height, fps=0.0, codec=kind, decoder=ImageDecoder.name, frames_hint=len(paths)
        )

    def __iter__(self) -> Iterator[torch.Tensor]:
        for chunk in self._preprocessor.chunks(self._pictures, self._device):
            self.info.frames += len(chunk)
            yield chunk

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self, paths: Sequence[Path]) -> Iterator[np.ndarray]:
        waiting: deque[tuple[Path, Future[np.ndarray]]] = deque()
        remaining = iter(paths)
        size = None
        while True:
            for path in itertools.islice(remaining, _MAX_THREADS + 1 - len(waiting)):
                waiting.append((path, self._threads.submit(read_image, path)))
            if not waiting:
                return
            path, future = waiting.popleft()
            picture = future.result()
            size = size or picture.shape
            if picture.shape != size:
                raise DecodeError(
                    f"frame {printable(path.name)} is {picture.shape[1]} x {picture.shape[0]} pixels, "
                    f"those before it {size[1]} x {size[0]}"
                )
            yield picture


def read_image(path: Path) -> np.ndarray:
    """An image as RGB uint8 ``(h, w, 3)``, upright; transparency is left out, 16 bits are cut to 8.

    Raises DecodeError.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which convert() would clip instead of scale
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise DecodeError(f"frame {printable(path.name)} has vanished") from error
    except PermissionError as error:
        raise DecodeError(f"frame {printable(path.name)} may not be read") from error
    except Exception as error:  # Pillow's plugins raise what their parsers stumble upon
        raise DecodeError(f"frame {printable(path.name)} is damaged or no image") from error


def _check_numbers(names: Sequence[str]) -> None:
    """Raises DecodeError if a number is missing or there twice.

    Frames may be numbered in steps (every fifth kept, say), and names that are times rather than numbers have
    no steps to speak of: a gap is a larger step among steps that are mostly equal.
    """
    split = [re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", Path(name).stem, re.DOTALL) for name in names]
    if len({(match[1], match[3]) for match in split}) > 1:
        return
    numbers = [int(match[2]) for match in split]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    for name, other, step in zip(names, names[1:], steps, strict=False):
        if step == 0:
            raise DecodeError(f"two frames have one number: {printable(name)} and {printable(other)}")
    usual = min(steps, default=1)
    if steps.count(usual) * 2 < len(steps):
        return
    for name, other, step in zip(names, names[1:], steps, strict=False):
        if step != usual:
            raise DecodeError(
                f"frames are missing between {printable(name)} and {printable(other)}: everything after them "
                "would be counted wrong; add them, or number the frames without a gap"
            )
