"""The README's figures and chart, from the results of full runs in ``bench/results/``: nothing is written by hand.

    python -m bench.report            # write both
    python -m bench.report --check    # exit 1 where README or chart differ from the results
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import common

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "bench" / "results", ROOT / "README.md"
CHART = "benchmarks.svg"
BEGIN, END = "<!-- benchmarks: written by `python -m bench.report` -->", "<!-- end of benchmarks -->"
BENCHMARKS = ("extract", "encode", "decode", "scale")

Documents = dict[str, dict[str, Any]]


class ReportError(Exception):
    """Results or README are not what they should be. One line."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where something differs")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help="default: README.md")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check(options.results, options.readme)
        else:
            write(options.results, options.readme)
    except ReportError as error:
        sys.exit(f"bench.report: {error}")


def load(results: Path) -> Documents:
    """The full runs in a folder, by benchmark. Raises ReportError for a quick one: its figures are for a first look."""
    found = {}
    for name in BENCHMARKS:
        path = results / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
            if found[name].get("quick", True):
                raise ReportError(f"{path} is of a quick run; make a full one with `python -m bench.all`")
    return found


def write(results: Path, readme: Path) -> None:
    """Write the chart, and the block between the two markers of ``readme``."""
    documents = load(results)
    before, _, after = _parts(readme)
    if documents:
        common.bars(
            results / CHART, "streamfeat beside its peers", "more is faster", dict(panels(documents)),
            description=_digest(documents),
        )  # fmt: skip
    readme.write_text(before + block(documents) + after)


def check(results: Path, readme: Path) -> None:
    """Raise ReportError where README or chart are not what the results give."""
    documents = load(results)
    if _parts(readme)[1] != block(documents):
        raise ReportError(f"{readme.name} differs from {results}; run `python -m bench.report`")
    chart = results / CHART
    if documents and not (chart.exists() and _digest(documents) in chart.read_text()):
        raise ReportError(f"{chart} is not drawn from the results beside it; run `python -m bench.report`")


def _parts(readme: Path) -> tuple[str, str, str]:
    """What is before, between (with the markers), and after the markers."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ReportError(f"{readme} needs the markers {BEGIN} and {END}, once each, in this order")
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, BEGIN + between + END, after


def _digest(documents: Documents) -> str:
    """Ties a chart to its results."""
    return "sha256:" + hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()


# what is shown -------------------------------------------------------------------------------------------------------


def panels(documents: Documents) -> Iterator[tuple[str, dict[str, float]]]:
    """The chart's: title and bars."""
    if "extract" in documents:
        found = documents["extract"]["results"]
        title = f"whole runs, video files to features on disk: clips/s, {found['model']}"
        yield title, {side["side"]: side["clips/s"] for side in found["sides"]}
    if "encode" in documents:
        for found in documents["encode"]["results"]:
            rows = [row for row in found["rows"] if row["batch"] == 2]
            bars = {f"{row['side']}, {row['precision']}": row["clips/s"] for row in rows}
            yield f"encoder alone, batches of 2: clips/s, {found['model']}", bars
    if "decode" in documents:
        for video in documents["decode"]["results"]["videos"]:
            if video["video"] in ("made-480p-h264.mp4", "made-1080p-h264.mp4"):
                bars = {name: side["frames/s"] for name, side in video["sides"].items()}
                yield f"decode + resize to 224 x 224: frames/s, {video['video']}", bars


def block(documents: Documents) -> str:
    """The README's part, with its markers."""
    writers = {"extract": _extract, "encode": _encode, "decode": _decode, "scale": _scale}
    parts = [writers[name](documents[name]["results"]) for name in BENCHMARKS if name in documents]
    if not parts:
        parts = ["No full run is recorded here yet."]
    else:
        parts = [f"![streamfeat beside its peers](bench/results/{CHART})", *parts, _machines(documents)]
    return "\n\n".join([BEGIN, *parts, END])


def _extract(found: dict[str, Any]) -> str:
    rows = [
        [
            side["side"], f"{side['clips/s']:.2f}",
            "1" if side["side"] == "streamfeat" else _times(side["times ours"]),
            f"{side['cosine']:.5f}", f"{side['disk_mb']:.1f} MB",
            "-" if side["memory_mb"] is None else f"{side['memory_mb']:.0f} MB",
        ]
        for side in sorted(found["sides"], key=lambda side: side["clips/s"])
    ]  # fmt: skip
    share = found["share of encoder"]
    text = (
        f"Whole runs, {found['model']}, {found['clips']} clips, same videos and weights, features compared with the "
        f"published way's; medians of {found['rounds']} turns."
    )
    if share is not None:
        text += f" streamfeat runs at {share:.2f} of the speed of its encoder alone."
    header = ["side", "clips/s", "time, streamfeat = 1", "lowest cosine", "on disk", "peak memory"]
    return "\n\n".join([text, _table(header, rows), *_left_out(found["left out"])])


def _encode(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            one["model"], row["side"], row["precision"], f"{row['clips/s']:.3g}", _times(row["x published"]),
            f"{row['of best product']:.2f}",
        ]
        for one in found
        for row in one["rows"]
        if row["batch"] == 2
    ]  # fmt: skip
    header = ["encoder alone", "side", "precision", "clips/s", "x published", "share of best product"]
    text = "The encoder alone, in batches of 2; other batches are in `bench/results/encode.json`."
    return "\n\n".join([text, _table(header, rows), *_left_out([line for one in found for line in one["left out"]])])


def _decode(found: dict[str, Any]) -> str:
    """A row a codec, a column a size; videos that were given have rows of their own."""
    rows: dict[str, dict[str, str]] = {}
    for video in found["videos"]:
        coded = re.fullmatch(r"(made|real)-(\d+p)-(\w+)\.\w+", video["video"])
        kind, size, codec = coded.groups() if coded else (video["video"], "as it is", "")
        cell = f"{_times(video['over own'])} / {_times(video['over exact'])}"
        rows.setdefault(f"{kind} {codec}".strip(), {})[size] = cell
    sizes = list(dict.fromkeys(size for row in rows.values() for size in row))
    text = (
        "Decode + resize to 224 x 224, float32 out, one video at a time: frames/s of streamfeat's faster decoder over "
        "those of the fastest peer (OpenCV, decord, torchcodec), once where it resizes in bytes in its own way, once "
        "where it gives the same numbers. Each side's frames/s are in `bench/results/decode.json`."
    )
    cells = [[name, *(row.get(size, "") for size in sizes)] for name, row in rows.items()]
    return text + "\n\n" + _table(["over own / over exact", *sizes], cells)


def _scale(found: dict[str, Any]) -> str:
    rows = [
        [f"{name.replace('_', ' ')}: {row[name]}", f"{row['seconds']:.2f}", f"{row['frames/s']:.0f}",
         "-" if row["peak MB"] is None else f"{row['peak MB']:.0f}"]
        for name, steps in found.items()
        for row in steps
    ]  # fmt: skip
    text = "How the cost grows (vit_tiny, so that what is around the model shows); one quantity changes at a time."
    return text + "\n\n" + _table(["quantity", "seconds", "frames/s", "peak memory, MB"], rows)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _left_out(lines: list[str]) -> list[str]:
    return ["Left out: " + "; ".join(lines) + "."] if lines else []


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machines(documents: Documents) -> str:
    """Machine, versions and date; of each benchmark where they differ."""
    named: dict[str, list[str]] = {}
    for name, document in documents.items():
        named.setdefault(_machine(document["machine"]), []).append(name)
    return " ".join(f"Measured ({', '.join(names)}) {text}." for text, names in named.items())


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['vector_extension']}"
    if "gpu" in machine:
        where += f", {machine['gpu']}"
    return f"on {machine['date']} on {where}; Python {machine['python']}, {versions}"


if __name__ == "__main__":
    main()
