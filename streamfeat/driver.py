"""The NVIDIA driver, asked through ctypes: works without torch, and says why where torch would only say no."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator

#: CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76
_NAME_BYTES = 256


class DriverError(Exception):
    """The driver is missing or refuses; one line."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    name: str
    #: compute capability, as (9, 0)
    compute: tuple[int, int]
    #: bytes
    free: int
    total: int


def load(name: str) -> ctypes.CDLL:
    """A shared library of the driver. Raises DriverError."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(str(error)) from None


class Cuda:
    """CUDA's driver interface. Devices are numbered as torch numbers them (``CUDA_VISIBLE_DEVICES`` counts).

    Raises DriverError where there is no driver or no device, here and in each method.
    """

    def __init__(self) -> None:
        self._library = load("libcuda.so.1")
        self.call("cuInit", 0)

    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver supports, as (12, 8)."""
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return version.value // 1000, version.value % 1000 // 10

    def count(self) -> int:
        """How many devices there are."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def gpu(self, index: int) -> Gpu:
        """What device ``index`` is and has free."""
        device = self._device(index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", name, _NAME_BYTES, device)
        major, minor = (self._attribute(number, device) for number in (_COMPUTE_MAJOR, _COMPUTE_MINOR))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.context(index):
            self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return Gpu(name.value.decode(errors="replace"), (major, minor), free.value, total.value)

    @contextlib.contextmanager
    def context(self, index: int) -> Iterator[None]:
        """Make device ``index`` current in this thread.

        The context is the primary one, which torch and DALI use too: asking takes no memory of its own beside them.
        """
        device, context = self._device(index), ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            self.call("cuCtxPushCurrent_v2", context)
            try:
                yield
            finally:
                self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        finally:
            self.call("cuDevicePrimaryCtxRelease_v2", device)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns a CUresult."""
        try:
            code = getattr(self._library, name)(*arguments)
        except AttributeError:
            raise DriverError(f"the driver is too old, it has no {name}") from None
        if code:
            raise DriverError(f"{name}: {self._text(code)}")

    def _device(self, index: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        return device

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        with contextlib.suppress(AttributeError):
            self._library.cuGetErrorString(code, ctypes.byref(text))
        return (text.value or b"").decode(errors="replace") or f"error {code}"


def release() -> str | None:
    """The driver's own version, as ``570.86.15``; None where NVML, which knows it, is not here."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    try:
        nvml = load("libnvidia-ml.so.1")
        failed = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES)
    except (DriverError, AttributeError):
        return None
    return None if failed else text.value.decode(errors="replace")
