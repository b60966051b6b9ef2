"""How frames are numbered and stored in a folder, and whether a folder that is there was made like that.

Nothing is noted beside the frames, where it would be one file too many for those who list the folders: names,
quantisation tables and colours tell, also of folders that another program made.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from streamfeat.decode.base import DecodeError
from streamfeat.decode.images import read_image
from streamfeat.videos import list_frames, printable

#: as cv2.imwrite by default, and what libjpeg does by default: one chroma value for four pixels
_SUBSAMPLING = "4:2:0"
#: grey levels, of a mean over the picture; less than that, and its red and blue are too alike to tell
_DISTINCT = 0.5
#: a stored picture may differ from the video's, coded anew, by this share of what its JPEG loses, and by grey levels on
#: top: other versions of FFmpeg and libjpeg round otherwise, GPUs (whose files have all chroma) convert YUV otherwise.
#: On three real clips BT.709 for BT.601 makes up to 0.6, the full range for the limited one up to 7. Twice that: what
#: is refused for its conversion would be made just so again.
_SHARE_OF_LOSS, _ROUNDED, _CONVERTED = 0.5, 2.0, 16.0
#: what helps where a folder is not worth keeping
REMOVE = "delete it, and the same command makes it anew"


class FramesError(Exception):
    """The frames cannot be dumped as asked; nothing was written."""


@dataclasses.dataclass(frozen=True)
class FrameLayout:
    """How frames are numbered and stored."""

    first_index: int = 0
    digits: int = 5
    #: of JPEG, 1 to 100
    quality: int = 95
    #: red and blue exchanged in the files
    swapped: bool = False
    #: folders named by the last part of the video's name
    flat: bool = False

    def __post_init__(self) -> None:
        if self.first_index not in (0, 1) or not 1 <= self.digits <= 12 or not 1 <= self.quality <= 100:
            raise FramesError("frames are numbered from 0 or 1, with 1 to 12 digits, in a quality from 1 to 100")

    @property
    def most_frames(self) -> int:
        """Frames that the digits can number."""
        return 10**self.digits - self.first_index

    def digits_for(self, frames: int) -> int:
        """Digits that so many frames take."""
        return len(str(frames - 1 + self.first_index))

    def file_name(self, index: int) -> str:
        """Of the frame ``index``, counted from 0."""
        return f"img_{index + self.first_index:0{self.digits}d}.jpg"


#: the frames as they are
PLAIN = FrameLayout()
#: what the published script writes; cv2.imwrite has quality 95 unless told otherwise
FED_WSVAD = FrameLayout(first_index=1, quality=95, swapped=True, flat=True)


def jpeg(picture: np.ndarray, layout: FrameLayout, *, all_chroma: bool = False) -> bytes:
    """The file of a ``picture``, uint8 BGR ``(h, w, 3)``; ``all_chroma``: as GPUs code it, a value for every pixel."""
    # Pillow takes it for RGB, and so will whoever reads the file
    stored = picture if layout.swapped else picture[..., ::-1]
    buffer = io.BytesIO()
    subsampling = "4:4:4" if all_chroma else _SUBSAMPLING
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "JPEG", quality=layout.quality, subsampling=subsampling)
    return buffer.getvalue()


def fault(folder: Path, layout: FrameLayout, picture: np.ndarray | None) -> str | None:
    """Why ``folder`` cannot be kept as a video's frames in ``layout``, and what to do; None if nothing tells.

    ``picture`` is the video's first, uint8 BGR ``(h, w, 3)``; None: the video cannot tell. Whether all of its frames
    are there is not looked at: that takes their number.
    """
    try:
        if (empty := _empty_file(folder)) is not None:
            return f"is damaged: {printable(empty)} is empty; {REMOVE}"
        otherwise = _other_files(folder, layout)
        if otherwise is None and picture is not None:
            stored = read_image(folder / layout.file_name(0))[..., ::-1]
            otherwise = _other_size(stored, picture)
            if otherwise is None and _is_other_picture(stored, picture, folder / layout.file_name(0), layout):
                return f"has the frames of another video: its first is another picture; {REMOVE}"
            otherwise = otherwise or _other_colours(stored, picture, layout.swapped)
    except UnidentifiedImageError:
        otherwise = "its first frame is no JPEG"
    except OSError as error:
        otherwise = error.strerror or str(error)
    except DecodeError as error:
        otherwise = str(error)
    if otherwise is None:
        return None
    return (f"was made otherwise: {otherwise}; give the options that it was made with, choose another destination, "
            "or remove it")


def _empty_file(folder: Path) -> str | None:
    """The name of a frame in whose file nothing is, as a machine that went down leaves them."""
    return next((path.name for path in list_frames(folder) if not path.stat().st_size), None)


def _other_files(folder: Path, layout: FrameLayout) -> str | None:
    names = [path.name for path in list_frames(folder)]
    if not names:
        return "it holds no frames"
    if names[0] != layout.file_name(0):
        return f"its first frame is {printable(names[0])}, not {layout.file_name(0)}"
    last = layout.file_name(len(names) - 1)
    if names[-1] != last:
        return f"its last frame is {printable(names[-1])}, but with {len(names)} frames it should be {last}"
    tables = _quantisation(folder / names[0])
    if not _same(tables, _tables(layout.quality)):
        found = next((quality for quality in range(100, 0, -1) if _same(tables, _tables(quality))), "unknown")
        return f"its JPEG quality is {found}, not {layout.quality}"
    return None


def _other_size(stored: np.ndarray, picture: np.ndarray) -> str | None:
    if stored.shape == picture.shape:
        return None
    return (f"its frames have {stored.shape[1]} x {stored.shape[0]} pixels, "
            f"those of the video {picture.shape[1]} x {picture.shape[0]}")


def _is_other_picture(stored: np.ndarray, picture: np.ndarray, path: Path, layout: FrameLayout) -> bool:
    """Whether ``stored``, read from ``path``, differs by more than coding does from ``picture``; both uint8 BGR."""
    with Image.open(path) as image:
        all_chroma = JpegImagePlugin.get_sampling(image) == 0
    # with red and blue the wrong way round it still is the video's
    for wanted in (picture, picture[..., ::-1]):
        coded = jpeg(wanted, dataclasses.replace(layout, swapped=False), all_chroma=all_chroma)
        with Image.open(io.BytesIO(coded)) as image:
            expected = np.asarray(image)[..., ::-1]
        allowed = _SHARE_OF_LOSS * _difference(expected, wanted) + (_CONVERTED if all_chroma else _ROUNDED)
        if _difference(stored, expected) <= allowed:
            return False
    return True


def _other_colours(stored: np.ndarray, picture: np.ndarray, swapped: bool) -> str | None:
    """Both uint8 BGR."""
    straight, exchanged = (_difference(stored, other) for other in (picture, picture[..., ::-1]))
    if abs(straight - exchanged) < _DISTINCT or (exchanged < straight) == swapped:
        return None
    return f"red and blue are {'not ' if swapped else ''}exchanged in its frames"


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def _quantisation(path: Path) -> Mapping[int, list[int]]:
    """The tables of a JPEG file, which libjpeg makes of the quality that it is given. Raises OSError."""
    with Image.open(path, formats=["JPEG"]) as image:
        return image.quantization


@functools.cache
def _tables(quality: int) -> Mapping[int, list[int]]:
    encoded = jpeg(np.zeros((8, 8, 3), np.uint8), FrameLayout(quality=quality))
    with Image.open(io.BytesIO(encoded)) as image:
        return image.quantization


def _same(found: Mapping[int, list[int]], tables: Mapping[int, list[int]]) -> bool:
    # grey pictures have the first alone
    return all(table == tables.get(index) for index, table in found.items())
