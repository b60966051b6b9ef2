"""What coded packets show before they are decoded.

Whether each is one frame, which is displayed when it is decoded, and whether DALI would begin with it.

The syntax is that of ITU-T H.264 (7.3.1, 7.3.3; ISO/IEC 14496-15 for lengths in place of start codes), H.265 (7.3.1.2,
7.3.6.1), ISO/IEC 14496-2 (6.2.5), RFC 6386 (9.1) for VP8 and the VP9 bitstream specification 0.6 (6.2, annex B).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_START_CODE = re.compile(rb"\x00\x00\x01")
_VOP = re.compile(rb"\x00\x00\x01\xb6")
#: bytes of an MPEG-4 picture that only says that there is none
_EMPTY_VOP = 8


def one_frame_test(codec: str, extradata: bytes | None) -> Callable[[bytes | memoryview], bool]:
    """The test of a stream's packets; of a codec that is not known here all pass.

    Args:
        codec: FFmpeg's name.
        extradata: of the stream; it says how long the lengths in packets of H.264 and HEVC are.
    """
    if codec in ("h264", "hevc"):
        length_size = _length_size(codec, extradata)
        begins = _begins_h264 if codec == "h264" else _begins_hevc
        return lambda packet: _is_one_picture(bytes(packet), length_size, begins)
    return {"vp8": _is_shown_vp8, "vp9": _is_shown_vp9, "mpeg4": _is_one_vop}.get(codec, lambda packet: True)


def is_seekable_test(codec: str, extradata: bytes | None) -> Callable[[bytes | memoryview], bool]:
    """The test of packets that the container calls key frames: whether they are, and whether DALI takes them for some.

    In H.264 and HEVC DALI 2.4 looks for units of certain types behind lengths of four bytes (``BuildIndex`` in its
    ``frames_decoder_base.cc``; later ones know start codes too), in all else it believes the container. Arguments as
    those of ``one_frame_test``.
    """
    if codec not in ("h264", "hevc"):
        return {"vp8": _is_key_vp8, "vp9": _is_key_vp9, "mpeg4": _is_intra_vop}.get(codec, lambda packet: True)
    if _length_size(codec, extradata) != 4:
        return lambda packet: False
    # instantaneous decoding refresh; random access points
    types, shift = (range(5, 6), 0) if codec == "h264" else (range(16, 22), 1)
    mask = 0x1F if codec == "h264" else 0x3F

    def test(packet: bytes | memoryview) -> bool:
        data = bytes(packet)
        return any(start < end <= len(data) and data[start] >> shift & mask in types for start, end in _units(data, 4))

    return test


def _length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the lengths before units of H.264 and HEVC; 0 where start codes are in their place."""
    if not extradata or extradata[0] != 1:  # neither avcC nor hvcC
        return 0
    at = 4 if codec == "h264" else 21
    return (extradata[at] & 3) + 1 if len(extradata) > at else 0


def _is_one_picture(data: bytes, length_size: int, begins: Callable[[bytes, int, int], int | None]) -> bool:
    """Whether the units of a packet are whole, and exactly one of them begins a picture."""
    pictures = 0
    for start, end in _units(data, length_size):
        begun = begins(data, start, end) if end <= len(data) else None
        if begun is None:
            return False
        pictures += begun
    return pictures == 1


def _units(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of each NAL unit; an end behind that of the data where it is damaged."""
    if not length_size:
        starts = [found.end() for found in _START_CODE.finditer(data)]
        ends = [start - 3 for start in starts[1:]] + [len(data)]
        if not starts or data[: starts[0] - 3].strip(b"\0"):
            yield 0, len(data) + 1
        yield from zip(starts, ends, strict=True)
        return
    at = 0
    while at < len(data):
        start = at + length_size
        at = start + int.from_bytes(data[at:start], "big")
        yield start, at


def _begins_h264(data: bytes, start: int, end: int) -> int | None:
    """1 for the first slice of a picture, 0 for any other unit, None for what is none."""
    if start == end:
        return 0
    if data[start] & 0x80:
        return None
    if data[start] & 0x1F not in (1, 2, 5):
        return 0
    # first_mb_in_slice is 0 where its first bit is set
    return None if end - start < 2 else data[start + 1] >> 7


def _begins_hevc(data: bytes, start: int, end: int) -> int | None:
    """As ``_begins_h264``; pictures of further layers do not count."""
    if start == end:
        return 0
    if end - start < 2 or data[start] & 0x80:
        return None
    if data[start] >> 1 >= 32 or data[start] & 1 or data[start + 1] >> 3:
        return 0
    return None if end - start < 3 else data[start + 2] >> 7


def _is_one_vop(packet: bytes | memoryview) -> bool:
    data = bytes(packet)
    vops = [found.start() for found in _VOP.finditer(data)]
    return len(vops) == 1 and len(data) - vops[0] > _EMPTY_VOP


def _is_intra_vop(packet: bytes | memoryview) -> bool:
    data = bytes(packet)
    vop = _VOP.search(data)
    # vop_coding_type 0
    return vop is not None and len(data) > vop.end() and data[vop.end()] >> 6 == 0


def _is_key_vp8(packet: bytes | memoryview) -> bool:
    return not packet[0] & 0x01


def _is_key_vp9(packet: bytes | memoryview) -> bool:
    return not _header_vp9(packet) & 0x0400


def _is_shown_vp8(packet: bytes | memoryview) -> bool:
    return bool(packet[0] & 0x10)


def _is_shown_vp9(packet: bytes | memoryview) -> bool:
    """Neither a frame that was decoded before, nor one that is never shown, nor several in one."""
    header = _header_vp9(packet)
    return not header & 0x0800 and bool(header & 0x0200) and packet[-1] & 0xE0 != 0xC0


def _header_vp9(packet: bytes | memoryview) -> int:
    """Its first 16 bits: after four come show_existing_frame, frame_type and show_frame."""
    header = packet[0] << 8 | (packet[1] if len(packet) > 1 else 0)
    return header << 1 if header >> 12 & 0x3 == 0x3 else header  # a reserved bit follows profile 3
