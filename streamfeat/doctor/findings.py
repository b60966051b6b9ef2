"""From the facts that the probes found to findings: what each means for ``extract``, and the remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from streamfeat import compiled

Facts = dict[str, Any]

#: the newest major CUDA -> the oldest driver for it (NVIDIA DALI's installation page; torch needs the same)
_OLDEST_DRIVER = {11: "450.80", 12: "525.60", 13: "580"}
_GPU_ONLY, _ALL = ("cuda",), ("cuda", "cpu")
_GB, _GIB = 10**9, 2**30
#: bytes free in a folder, under which a word is due
_LITTLE_DISK = _GB
#: bytes; a run of vit_b in fp32 on two cores, two 1080p videos at once, took 1.9 GiB at most
_LITTLE_MEMORY = 2 * _GIB

_REINSTALL = "pip install --force-reinstall -c constraints.txt ."
_RESTART = "look at nvidia-smi; restart the driver or the machine"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    #: a noun, as in ``driver``
    what: str
    found: str
    #: what to do; empty where all is well
    remedy: str = ""
    #: devices, out of ``cuda`` and ``cpu``, on which ``extract`` does not work because of this
    blocks: tuple[str, ...] = ()

    def mark(self, device: str) -> str:
        """``ok``, ``missing`` (``extract`` on ``device`` does not work) or ``warning`` (it does, but)."""
        if device in self.blocks:
            return "missing"
        return "warning" if self.remedy else "ok"


def examine(facts: dict[str, Facts]) -> list[Finding]:
    """Findings of all probes whose answers are in ``facts``, by name; those left out were not asked."""
    found: list[Finding] = []
    for name, (check, blocks, remedy) in _CHECKS.items():
        if name not in facts:
            continue
        what = "PyAV" if name == "pyav" else "DALI" if name == "dali" else "weights" if name == "hub" else name
        try:
            if "failed" in facts[name]:
                found.append(Finding(what, facts[name]["failed"], remedy, blocks))
            else:
                found += check(facts)
        except Exception as error:  # facts that nobody thought of must not end the doctor
            found.append(Finding(what, f"cannot be judged: {type(error).__name__}: {error}", "please report this"))
    return found


def _driver(facts: dict[str, Facts]) -> Iterator[Finding]:
    driver = facts["driver"]
    release = f"{driver['release']}" if driver.get("release") else "its own version unknown"
    if "problem" in driver:
        remedy = (
            "install NVIDIA's driver, 525.60 or newer; in a container run it with --gpus all, which needs the NVIDIA"
            " Container Toolkit on the host"
        )
        if driver.get("visible_devices") is not None:
            remedy = f"CUDA_VISIBLE_DEVICES is {driver['visible_devices']!r}: unset it, or {remedy}"
        yield Finding("driver", f"none that works ({driver['problem']})", remedy, _GPU_ONLY)
        return
    needed = _major(facts.get("torch", {}).get("cuda")) or 12
    supported = f"{release}, for CUDA up to {_dotted(driver['cuda'])}"
    if driver["cuda"][0] < needed:
        remedy = f"torch here is built for CUDA {needed}: update the driver to {_OLDEST_DRIVER.get(needed, 'a newer')}"
        yield Finding("driver", f"{supported}: too old", f"{remedy} or newer", _GPU_ONLY)
    else:
        yield Finding("driver", supported)
    if not driver["gpus"]:
        yield Finding("GPU", "none", "set CUDA_VISIBLE_DEVICES to the GPU to use, or use --device cpu", _GPU_ONLY)
    for index, gpu in enumerate(driver["gpus"]):
        yield from _gpu(f" {index}" if len(driver["gpus"]) > 1 else "", gpu)


def _gpu(number: str, gpu: Facts) -> Iterator[Finding]:
    if "problem" in gpu:
        yield Finding(f"GPU{number}", gpu["problem"], _RESTART, _GPU_ONLY)
        return
    text = (
        f"{gpu['name']}, compute capability {_dotted(gpu['compute'])}, {_gib(gpu['free'])} of"
        f" {_gib(gpu['total'])} GiB free"
    )
    little = gpu["free"] < _LITTLE_MEMORY
    yield Finding(f"GPU{number}", text, "end what else uses it (nvidia-smi shows it)" if little else "")
    yield _nvdec(f"NVDEC{number}", gpu)


def _nvdec(what: str, gpu: Facts) -> Finding:
    if "nvdec_problem" in gpu:
        return Finding(
            what, f"{gpu['nvdec_problem']}; videos are decoded on the CPU",
            "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; else install the driver's"
            " libnvidia-decode (Ubuntu) or libnvcuvid1 (Debian)",
        )
    if "h264" not in gpu["nvdec"]:
        return Finding(
            what, "this GPU decodes no H.264; videos are decoded on the CPU", "use a GPU with NVDEC, or enough cores"
        )
    engines = gpu["nvdec"]["h264"]["engines"]
    count = f"{engines} engine{'s' * (engines != 1)}" if engines else "engines that the driver is too old to count"
    return Finding(what, f"{count}: {', '.join(sorted(gpu['nvdec']))}; the rest is decoded on the CPU")


def _torch(facts: dict[str, Facts]) -> Iterator[Finding]:
    torch = facts["torch"]
    build = f"{torch['version']}, built for {'CUDA ' + torch['cuda'] if torch['cuda'] else 'the CPU only'}"
    devices = torch["devices"]
    gpus = {name: answer for name, answer in devices.items() if name != "cpu"}
    broken = {name: answer["problem"] for name, answer in devices.items() if "problem" in answer}
    if "driver" not in facts and "cpu" not in broken:
        yield Finding("torch", f"{build}, the encoder runs on the CPU")
    elif "cpu" in broken:
        yield Finding("torch", f"{build}: the encoder does not run: {broken['cpu']}", _REINSTALL, _ALL)
    elif not torch["cuda"]:
        yield Finding("torch", build, "pip install --force-reinstall -c constraints.txt torch torchvision", _GPU_ONLY)
    elif not gpus:
        if "problem" in torch and "problem" not in facts["driver"]:
            found, remedy = f"{build}, sees no GPU: {torch['problem']}", "update the driver and restart"
        else:
            found, remedy = f"{build}, sees no GPU", "first mend the driver, above"
        yield Finding("torch", found, remedy, _GPU_ONLY)
    elif broken:
        reasons = "; ".join(f"{name}: {problem}" for name, problem in broken.items())
        remedy = "a torch build that has this GPU's compute capability, or another GPU by --device cuda:N"
        yield Finding("torch", f"{build}: the encoder does not run ({reasons})", remedy, _GPU_ONLY)
    else:
        yield Finding("torch", f"{build}, the encoder runs on {', '.join(gpus)} and the CPU")
    working = {name: answer for name, answer in devices.items() if "precision" in answer}
    if working:
        chosen = [
            f"{answer['precision']} on {name} ({answer['why']}{'; fp8 is possible' if answer['fp8'] else ''})"
            for name, answer in working.items()
        ]
        yield Finding("precision", ", ".join(chosen))
    if "kernels" in torch:
        yield _kernels(torch["kernels"])


def _kernels(kernels: Facts) -> Finding:
    """Of what is compiled for the CPU when streamfeat is installed."""
    if not kernels["resize"]:
        remedy = (
            "for faster decoding on the CPU and a faster --precision int8 install gcc, then in streamfeat's folder: "
            "pip install --no-deps --force-reinstall ."
        )
        return Finding("kernels", compiled.MISSING, remedy)
    return Finding("kernels", "resizing, " + (f"but not int8: {kernels['int8']}" if kernels["int8"] else "int8"))


def _dali(facts: dict[str, Facts]) -> Iterator[Finding]:
    dali = facts["dali"]
    text = f"{dali['version']}, built for CUDA {_dotted(dali['cuda'])}"
    torch_major = _major(facts.get("torch", {}).get("cuda"))
    if torch_major and torch_major != dali["cuda"][0]:
        yield Finding(
            "DALI", f"{text}, but torch for CUDA {torch_major}",
            f"pip uninstall nvidia-dali-cuda{dali['cuda'][0]}0; pip install nvidia-dali-cuda{torch_major}0",
        )
    elif "problem" in dali:
        remedy = "look at NVDEC, above; until then videos are decoded on the CPU, which is slower"
        yield Finding("DALI", f"{text}, does not decode on the GPU: {dali['problem']}", remedy)
    else:
        yield Finding("DALI", f"{text}{', decodes on the GPU' if 'decoded' in dali else ''}")


def _pyav(facts: dict[str, Facts]) -> Iterator[Finding]:
    pyav = facts["pyav"]
    text = f"{pyav['version']}, FFmpeg {pyav['ffmpeg'] or 'unknown'}: {', '.join(pyav['decodes'])}"
    lacks = [codec for codec in ("h264", "hevc", "vp9", "mpeg4", "mjpeg") if codec not in pyav["decodes"]]
    if lacks:
        remedy = "pip install --force-reinstall --only-binary av av"
        yield Finding("PyAV", f"{text}; without {', '.join(lacks)}", remedy)
    else:
        yield Finding("PyAV", text)


def _hub(facts: dict[str, Facts]) -> Iterator[Finding]:
    hub = facts["hub"]
    cached = f"{', '.join(hub['cached']) or 'none'} in {hub['folder']}"
    have_default = hub["default"] in hub["cached"]
    if "problem" not in hub:
        text = f"{cached}; {hub['endpoint']} answers"
        remedy = ""
        if not hub["writable"]:
            remedy = "that folder cannot be written to: set HF_HOME to one that can, or pass --weights FILE"
        elif hub["free"] < _LITTLE_DISK and not have_default:
            remedy = f"only {_gb(hub['free'])} GB are free there: set HF_HOME to a folder on another disk"
    else:
        text = f"{cached}; {hub['endpoint']} does not answer ({hub['problem']})"
        remedy = f"pass --weights FILE, or where there is network: hf download {hub['default']}"
    yield Finding("weights", text, "" if have_default else remedy)


def _disk(facts: dict[str, Facts]) -> Iterator[Finding]:
    disk = facts["disk"]
    text = f"{_gb(disk['free'])} GB free in {disk['folder']}"
    if not disk["writable"]:
        remedy = "write the store elsewhere; of a container: docker run --user $(id -u):$(id -g)"
        yield Finding("disk", f"{text}, which cannot be written to", remedy)
    else:
        yield Finding("disk", text, "write the store to another disk" if disk["free"] < _LITTLE_DISK else "")


def _memory(facts: dict[str, Facts]) -> Iterator[Finding]:
    memory = facts["memory"]
    cores = f"{memory['cores']} core{'s' * (memory['cores'] != 1)}"
    if memory["available"] is None:
        yield Finding("memory", f"unknown; {cores}")
        return
    little = memory["available"] < _LITTLE_MEMORY
    remedy = "a smaller --model, or fewer --lanes" if little else ""
    yield Finding("memory", f"{_gib(memory['available'])} GiB available; {cores}", remedy)


def _major(version: str | None) -> int | None:
    return int(version.split(".")[0]) if version else None


def _dotted(version: list[int]) -> str:
    return ".".join(map(str, version))


def _gb(count: int) -> str:
    return f"{count / _GB:.1f}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f}"


#: probe -> its check; and, where the probe itself fails, the devices that this blocks and the remedy
_CHECKS: dict[str, tuple[Callable[[dict[str, Facts]], Iterator[Finding]], tuple[str, ...], str]] = {
    "driver": (_driver, _GPU_ONLY, _RESTART),
    "torch": (_torch, _ALL, _REINSTALL),
    "dali": (_dali, (), "pip install nvidia-dali-cuda120 (Linux on x86-64); without it videos are decoded on the CPU"),
    "pyav": (_pyav, _ALL, "pip install --force-reinstall --only-binary av av"),
    "hub": (_hub, (), _REINSTALL),
    "disk": (_disk, (), "change to a folder that exists and answers"),
    "memory": (_memory, (), "none is needed: this is for your information"),
}
