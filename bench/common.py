"""What the benchmarks share: the machine they ran on, tables, and result files."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: whose versions a result depends on; those not installed are left out
PACKAGES = (
    "streamfeat", "torch", "torchvision", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "av", "h5py", "numpy",
    "opencv-python-headless", "decord", "torchcodec", "transformers", "PyNvVideoCodec",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and date: what a figure needs to mean anything."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "vector_extension": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": versions,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as aligned columns under ``title``."""
    if not rows:
        return f"{title}\n  (nothing)"
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[index]) for line in cells)) for index, column in enumerate(columns)]

    def render(line: Sequence[str]) -> str:
        first, rest = line[0].ljust(widths[0]), zip(line[1:], widths[1:], strict=True)
        return "  " + "  ".join([first, *(text.rjust(width) for text, width in rest)])

    return "\n".join([title, render(columns), render(["-" * width for width in widths]), *map(render, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save(path: str | os.PathLike[str], benchmark: str, results: Any, *, quick: bool = False) -> None:
    """Write ``results`` with the machine they were measured on."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": benchmark, "quick": quick, "machine": machine(), "results": results}
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw them there (.svg, .png; needs matplotlib)")
    return parser


def bars(
    path: str | os.PathLike[str], title: str, unit: str, groups: Mapping[str, Mapping[str, float | None]],
    description: str | None = None,
) -> None:
    """Draw horizontal bars, one panel a group, ``{group: {label: value}}``; streamfeat's in colour.

    The background is white and opaque, so that it reads on dark pages too. ``description`` is kept in the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "streamfeat"  # the same results draw the same file
    groups = {name: {k: v for k, v in found.items() if v} for name, found in groups.items()}
    heights = [max(1, len(found)) for found in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(8, 0.6 + 0.3 * sum(heights) + 0.5 * len(groups)), squeeze=False,
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    figure.suptitle(f"{title}, {unit}", fontsize=11)
    for axis, (name, found) in zip(axes[:, 0], groups.items(), strict=True):
        labels = list(found)[::-1]
        colours = ["#d1495b" if label.startswith("streamfeat") else "#9aa5b1" for label in labels]
        drawn = axis.barh(labels, [found[label] for label in labels], color=colours)
        axis.bar_label(drawn, labels=[f"{found[label]:.3g}" for label in labels], padding=3, fontsize=8)
        axis.set_title(name, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    metadata = {"Description": description} if description else {}
    if str(path).endswith(".svg"):
        metadata["Date"] = None
    figure.savefig(path, metadata=metadata, facecolor="white")
    pyplot.close(figure)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of ``above / below`` turn by turn: what slows a whole turn down does not show in it."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def lowest_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest cosine between corresponding last-axis vectors of two arrays of one shape."""
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (ours, theirs))
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
