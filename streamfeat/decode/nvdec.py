"""What the video decoder of an NVIDIA GPU (NVDEC) can do, as its driver says. No package but ctypes is needed.

Names, numbers and the layout of the struct are those of ``cuviddec.h`` in NVIDIA's Video Codec SDK 13.0, which has had
them since 11.0; drivers older than that leave the number of engines at 0.
"""

from __future__ import annotations

import ctypes
import dataclasses

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


class Unavailable(Exception):
    """NVDEC cannot be asked; one line that says what is missing."""


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
    except Unavailable:
        return {}


def query(device_index: int = 0) -> dict[str, Capability]:
    """As ``capabilities``, but raises Unavailable with the reason."""
    cuda = _load("libcuda.so.1", "no NVIDIA driver")
    cuvid = _load("libnvcuvid.so.1", "the driver's video part is not here")
    try:
        return _query(cuda, cuvid, device_index)
    except AttributeError as error:
        raise Unavailable(f"the driver is too old: {error}") from None


def _query(cuda: ctypes.CDLL, cuvid: ctypes.CDLL, device_index: int) -> dict[str, Capability]:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(cuda, "cuInit", cuda.cuInit(0))
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), device_index))
    # the one that torch and DALI use too, so that asking takes no memory of its own beside them
    _check(cuda, "cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    try:
        _check(cuda, "cuCtxPushCurrent", cuda.cuCtxPushCurrent_v2(context))
        try:
            _check(cuda, "cuvidGetDecoderCaps", cuvid.cuvidGetDecoderCaps(ctypes.byref(_asking(_CODECS["h264"]))))
            found = {codec: _capability(cuvid, number) for codec, number in _CODECS.items()}
        finally:
            cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        release = getattr(cuda, "cuDevicePrimaryCtxRelease_v2", None) or cuda.cuDevicePrimaryCtxRelease
        release(device)
    return {codec: capability for codec, capability in found.items() if capability}


def _capability(cuvid: ctypes.CDLL, codec: int) -> Capability | None:
    caps = _asking(codec)
    # an error here is a codec that is younger than the driver
    if cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)) or not caps.supported:
        return None
    return Capability(caps.engines, caps.min_width, caps.min_height, caps.max_width, caps.max_height)


def _asking(codec: int) -> _DecodeCaps:
    return _DecodeCaps(codec=codec, chroma=_CHROMA_420, bit_depth_minus_8=0)


def _load(name: str, missing: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise Unavailable(f"{missing} ({error})") from None


def _check(cuda: ctypes.CDLL, call: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise Unavailable(f"{call}: {(text.value or b'').decode(errors='replace') or f'error {code}'}")
