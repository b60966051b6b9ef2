"""``doctor()``: asks the machine, and says whether ``extract`` would work."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import streamfeat
from streamfeat.doctor import isolate
from streamfeat.doctor.findings import Finding, examine
from streamfeat.doctor.probes import PROBES

DEVICES = ("cuda", "cpu", "auto")
#: what a run on the CPU has no use for
_GPU_PROBES = {"driver", "dali"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`doctor` found; ``str()`` is the page that the command prints."""

    #: that was asked about, ``cuda`` or ``cpu``
    device: str
    findings: list[Finding]
    #: what each probe said
    facts: dict[str, dict[str, Any]]

    @property
    def works(self) -> bool:
        """Whether ``extract`` on the device would work."""
        return self.works_on(self.device)

    def works_on(self, device: str) -> bool:
        """Whether ``extract --device`` ``cuda`` or ``cpu`` would work. Asked about the CPU, a GPU is not looked at."""
        return not any(device in finding.blocks for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "device": self.device,
            "works": self.works,
            "findings": [
                {"what": f.what, "mark": f.mark(self.device), "found": f.found, "remedy": f.remedy}
                for f in self.findings
            ],
            "facts": self.facts,
        }

    def __str__(self) -> str:
        lines = [
            f"streamfeat {streamfeat.__version__}, Python {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}"
        ]
        width = max(len(finding.what) for finding in self.findings)
        for finding in self.findings:
            lines.append(f"  {finding.mark(self.device):7}  {finding.what:{width}}  {finding.found}")
            if finding.remedy:
                lines.append(f"{'':{width + 11}}  -> {finding.remedy}")
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        where = {"cuda": "on a GPU", "cpu": "on the CPU"}[self.device]
        if self.works:
            return f"extract {where} works"
        blocking = dict.fromkeys(finding.what for finding in self.findings if self.device in finding.blocks)
        verdict = f"extract {where} would not work: {', '.join(blocking)}"
        if self.device == "cuda" and self.works_on("cpu"):
            verdict += "; on the CPU it works (extract --device cpu)"
        return verdict


def doctor(device: str = "cuda", *, limit: float = isolate.LIMIT) -> Report:
    """Look at what this machine has. Never raises for what it finds.

    Args:
        device: ``cuda``, ``cpu`` (a GPU and what belongs to it is then not looked at), or ``auto``: as ``extract``
            chooses, a GPU where torch sees one.
        limit: seconds, after which what has not answered counts as missing.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    gpus = device != "cpu"
    probes: dict[str, dict[str, Any]] = {name: {} for name in PROBES if gpus or name not in _GPU_PROBES}
    probes["torch"] = {"gpus": gpus}
    facts = isolate.ask(probes, limit)
    if device == "auto":
        device = "cuda" if len(facts["torch"].get("devices", ())) > 1 else "cpu"
    return Report(device, examine(facts), facts)
