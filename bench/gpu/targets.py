"""What was to be reached, and what was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.gpu.stage import Row


def targets(results: dict[str, Any]) -> list[Row]:
    """What was to be reached, and what was."""

    def rows(name: str) -> list[Row]:
        return results.get(name, {}).get("rows", [])

    def pick(name: str, field: str, **labels: Any) -> list[float]:
        return [row[field] for row in rows(name) if row.get(field) is not None
                and all(row.get(key) == value for key, value in labels.items())]

    table: list[Row] = []

    def add(measure: str, values: Sequence[float], target: float, best: Callable[..., float] = max) -> None:
        value = best(values) if values else None
        table.append({"measure": measure, "value": value, "target": target,
                      "met": None if value is None else bool(value >= target)})

    models = [name.removeprefix("encode-") for name in results if name.startswith("encode-")]
    for model, target in zip(models, (0.80, 0.65), strict=False):
        add(f"{model} fp16, share of the best product", pick(f"encode-{model}", "share", side="auto"), target)
    for video in ("480p", "1080p"):
        found = [row for row in rows("decode") if row.get("video") == video and "frames/s" in row]
        most = max((row["lanes"] for row in found if row["side"] == "streamfeat DALI"), default=None)
        ours = [row["frames/s"] for row in found if row["side"] == "streamfeat DALI" and row["lanes"] == most]
        peers = [row["frames/s"] for row in found if not row["side"].startswith("streamfeat") and row["lanes"] == most]
        add(f"decode {video} over the faster peer", [max(ours) / max(peers)] if ours and peers else [], 0.95)
    for model in models:
        add(f"extract, {model}, over the slower of encoder and decoder", pick("extract", "share", model=model), 0.95)
    for model, target in zip(models, (20, 40), strict=False):
        add(f"extract, {model}, over the published way", pick("published", "extract over it", model=model), target)
    for model in models:
        add(f"{model} fp16 against fp32, lowest cosine", pick("precision", "cosine", model=model), 0.9995, min)
    add("fp8 over fp16", pick("fp8", "over fp16"), 1.4)
    add("fp8 against fp16, lowest cosine", pick("fp8", "cosine"), 0.999, min)
    taken = {row["video"]: row["GiB"] for row in rows("memory") if "GiB" in row}
    ratio = [taken["minute"] / taken["hour"]] if len(taken) == 2 and taken["hour"] > 0 else []
    add("memory, minutes over an hour", ratio, 0.95)
    return table
