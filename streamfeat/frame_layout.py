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
from PIL import Image, UnidentifiedImageError

from streamfeat.decode.base import DecodeError
from streamfeat.decode.images import read_image
from streamfeat.videos import list_frames, printable

#: as cv2.imwrite by default, and what libjpeg does by default: one chroma value for four pixels
_SUBSAMPLING = "4:2:0"
#: grey levels, of a mean over the picture; less than that, and its red and blue are too alike to tell
_DISTINCT = 0.5


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


def made_otherwise(folder: Path, layout: FrameLayout, picture: np.ndarray | None) -> str | None:
    """What tells that ``folder`` does not hold a video's frames in ``layout``; None if nothing does.

    ``picture`` is the video's first, uint8 BGR ``(h, w, 3)``; None: the video cannot tell.
    """
    try:
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
        return None if picture is None else _differs(read_image(folder / names[0])[..., ::-1], picture, layout.swapped)
    except UnidentifiedImageError:
        return "its first frame is no JPEG"
    except OSError as error:
        return error.strerror or str(error)
    except DecodeError as error:
        return str(error)


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


def _differs(stored: np.ndarray, picture: np.ndarray, swapped: bool) -> str | None:
    """Both uint8 BGR."""
    if stored.shape != picture.shape:
        return (f"its frames have {stored.shape[1]} x {stored.shape[0]} pixels, "
                f"those of the video {picture.shape[1]} x {picture.shape[0]}")
    straight, exchanged = (float(np.abs(stored.astype(np.int16) - other).mean())
                           for other in (picture, picture[..., ::-1]))
    if abs(straight - exchanged) < _DISTINCT or (exchanged < straight) == swapped:
        return None
    return f"red and blue are {'not ' if swapped else ''}exchanged in its frames"
