"""What the machine is asked. Each probe runs in a process of its own, so it may raise, crash or hang.

Each returns plain facts for JSON; what they mean is decided in ``findings``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from streamfeat.text import first_line

#: seconds
_HUB_TIMEOUT = 3.0
#: of the video that DALI is to decode; wide and high enough for every NVDEC
_DECODED_FRAMES = 16
_DECODED_SIZE = (256, 256)
#: seconds; DALI's first pipeline starts CUDA
_DECODE_LIMIT = 20.0
#: FFmpeg's names, those that datasets come in
_CODECS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "wmv3", "flv")


def driver() -> dict[str, Any]:
    """The driver's versions and its GPUs, with what NVDEC does on each; or ``problem``."""
    import dataclasses

    from streamfeat.decode import nvdec
    from streamfeat.driver import Cuda, DriverError, release

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        cuda = Cuda()
        facts = {"release": release(), "cuda": cuda.version(), "gpus": []}
        for index in range(cuda.count()):
            try:
                gpu = {"nvdec": {}, **dataclasses.asdict(cuda.gpu(index))}
            except DriverError as error:
                facts["gpus"].append({"problem": str(error)})
                continue
            try:
                gpu["nvdec"] = {codec: dataclasses.asdict(found) for codec, found in nvdec.query(index).items()}
            except DriverError as error:
                gpu["nvdec_problem"] = str(error)
            facts["gpus"].append(gpu)
    except DriverError as error:
        return {"problem": str(error), "release": release(), "visible_devices": visible}
    return facts


def torch(gpus: bool) -> dict[str, Any]:
    """torch's build, and whether a small encoder runs on the CPU and on each GPU; per device a ``problem`` if not.

    Also whether resizing was compiled, and what is against the kernels of int8; None where nothing is.

    Args:
        gpus: whether to touch CUDA at all.
    """
    import torch

    from streamfeat.decode import resize
    from streamfeat.model import kernels

    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": {}}
    names = ["cpu"]
    if gpus and torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    elif gpus and torch.version.cuda:
        try:
            torch.cuda.init()
        except RuntimeError as error:
            facts["problem"] = first_line(error)
    for name in names:
        try:
            facts["devices"][name] = _encode(name)
        except Exception as error:
            facts["devices"][name] = {"problem": first_line(error)}
    facts["kernels"] = {"resize": resize.is_available(), "int8": kernels.unavailable()}
    return facts


def _encode(device: str) -> dict[str, Any]:
    """One small clip through the smallest encoder, as ``extract`` does it. Returns the precision chosen, and why."""
    import torch

    from streamfeat.model import fp8, load_encoder
    from streamfeat.model.weights import RANDOM

    encoder = load_encoder(RANDOM, size="vit_tiny", device=device, clip_frames=2, image_size=32, batch_size=1)
    features = encoder.encode(torch.zeros(1, 3, 2, 32, 32))
    if features.shape != (1, *encoder.row_shape):
        raise RuntimeError(f"the encoder gave an array of shape {features.shape}")
    return {
        "precision": encoder.precision, "why": encoder.why["precision"], "fp8": fp8.unavailable(encoder.device) is None
    }


def dali() -> dict[str, Any]:
    """DALI's version, the CUDA that it was built for, and, where there is a GPU, whether it decodes a video there."""
    import nvidia.dali
    import torch
    from nvidia.dali import backend

    version = int(backend.__cuda_version__)  # 12986 is 12.9.86
    facts = {"version": nvidia.dali.__version__, "cuda": [version // 1000, version % 1000 // 100]}
    if torch.cuda.is_available():
        try:
            facts["decoded"] = decode("cuda", "h264", "mp4")
        except Exception as error:
            facts["problem"] = first_line(error)
    return facts


def decode(device: str, codec: str, container: str) -> int:
    """Make a short video and decode it with DALI as ``extract`` does. Returns the number of frames that came."""
    import tempfile

    import av
    import numpy as np
    import torch

    from streamfeat.decode.dali import DaliDecoder
    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

    with tempfile.TemporaryDirectory(prefix="streamfeat-doctor-") as folder:
        path = Path(folder) / f"video.{container}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height = _DECODED_SIZE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            grey = np.full((stream.height, stream.width, 3), 128, np.uint8)
            for _ in range(_DECODED_FRAMES):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            output.mux(stream.encode())
        where = torch.device(device, 0) if device == "cuda" else torch.device(device)
        frames = DaliDecoder(where, _DECODE_LIMIT).open(Video("video", path), Recipe.named("wsvad"), where)
        try:
            return sum(len(chunk) for chunk in frames)
        finally:
            frames.close()


def pyav() -> dict[str, Any]:
    """PyAV's and FFmpeg's version, and the codecs they decode."""
    import av

    decodes = []
    for name in _CODECS:
        try:
            av.Codec(name, "r")
            decodes.append(name)
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
    return {"version": av.__version__, "ffmpeg": getattr(av, "ffmpeg_version_info", ""), "decodes": decodes}


def hub() -> dict[str, Any]:
    """Which published weights are in the cache, where that is, and whether the hub answers."""
    import huggingface_hub
    from huggingface_hub import constants

    from streamfeat.model.weights import DEFAULT, FILE_NAMES, HUB_IDS

    def cached(repo: str) -> bool:
        return any(isinstance(huggingface_hub.try_to_load_from_cache(repo, name), str) for name in FILE_NAMES)

    facts: dict[str, Any] = {
        "endpoint": constants.ENDPOINT,
        "default": DEFAULT,
        "cached": [repo for repo in HUB_IDS.values() if cached(repo)],
        "folder": constants.HF_HUB_CACHE,
        **_space(Path(constants.HF_HUB_CACHE)),
    }
    try:
        huggingface_hub.HfApi().model_info(DEFAULT, timeout=_HUB_TIMEOUT)
    except Exception as error:
        facts["problem"] = first_line(error)
    return facts


def disk() -> dict[str, Any]:
    """The folder that the command was started in, where a store with a plain name goes."""
    folder = Path.cwd()
    return {"folder": str(folder), **_space(folder)}


def _space(folder: Path) -> dict[str, Any]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return {"free": shutil.disk_usage(there).free, "writable": os.access(there, os.W_OK | os.X_OK)}


def memory() -> dict[str, Any]:
    """Memory in bytes and cores that this process may use: of the machine, or of its container if that has less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {"cores": cores, "available": None}
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        facts["available"] = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if facts["available"] is not None and limit is not None and used is not None:
        facts["available"] = min(facts["available"], limit - used)
    return facts


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


#: name -> what is run under it
PROBES = {probe.__name__: probe for probe in (driver, torch, dali, pyav, hub, disk, memory)}
