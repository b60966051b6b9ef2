"""What the video decoder of an NVIDIA GPU (NVDEC) can do, as its driver says. No package but ctypes is needed.

Names, numbers and the layout of the struct are those of ``cuviddec.h`` in NVIDIA's Video Codec SDK 13.0, which has had
them since 11.0; drivers older than that leave the number of engines at 0.
"""

from __future__ import annotations

import ctypes
import dataclasses

from streamfeat.driver import Cuda, DriverError, load

#: FFmpeg's name of a codec -> its number in the enum cudaVideoCodec
_CODECS = {
    "mpeg1video": 0,
    "mpeg2video": 1,
    "mpeg4": 2,
    "vc1": 3,
    "h264": 4,
    "mjpeg": 5,
    "hevc": 8,
    "vp8": 9,
    "vp9": 10,
    "av1": 11,
}
_CHROMA_420 = 1


@dataclasses.dataclass(frozen=True)
class Capability:
    """What NVDEC does with one codec in 8 bits, 4:2:0."""

    #: how many decode it, in parallel; 0 where the driver is too old to say
    engines: int
    #: pixels
    min_width: int
    min_height: int
    max_width: int
    max_height: int


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS: the caller fills the first three, the driver the rest."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved_1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte),
        ("histogram_bits", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved_3", ctypes.c_uint * 10),
    ]


def engines(device_index: int = 0) -> int | None:
    """How many NVDEC engines of CUDA device ``device_index`` decode H.264; None where that cannot be had. Never raises.

    H.264 because every generation has it, and because MJPEG is decoded by other engines on some.
    """
    found = capabilities(device_index).get("h264")
    return found.engines or None if found else None


def capabilities(device_index: int = 0) -> dict[str, Capability]:
    """What CUDA device ``device_index`` decodes, by FFmpeg's names; empty where that cannot be had. Never raises."""
    try:
        return query(device_index)
    except DriverError:
        return {}


def query(device_index: int = 0) -> dict[str, Capability]:
    """As ``capabilities``, but raises DriverError with the reason."""
    cuda = Cuda()
    cuvid = load("libnvcuvid.so.1")
    try:
        ask = cuvid.cuvidGetDecoderCaps
    except AttributeError:
        raise DriverError("the driver is too old, it has no cuvidGetDecoderCaps") from None
    found = {}
    with cuda.context(device_index):
        for codec, number in _CODECS.items():
            caps = _DecodeCaps(codec=number, chroma=_CHROMA_420, bit_depth_minus_8=0)
            # an error here is a codec that is younger than the driver
            if ask(ctypes.byref(caps)) == 0 and caps.supported:
                found[codec] = Capability(
                    caps.engines, caps.min_width, caps.min_height, caps.max_width, caps.max_height
                )
    return found
