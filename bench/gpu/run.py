"""The stages one after another, each saved and shown as soon as it has ended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import traceback
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import common, gpu
from bench.gpu.child import run_child
from bench.gpu.decoder import decode
from bench.gpu.encoder import encode, fp8, precision
from bench.gpu.made import media
from bench.gpu.memory import memory, memory_of
from bench.gpu.runs import colour, extract, jpeg, published
from bench.gpu.spent import stages
from bench.gpu.stage import FULL, QUICK, TINY, Scale, Stage, one_line
from bench.gpu.targets import targets

#: seconds for all stages; what has not begun by then is left out
TOTAL_SECONDS = 460
#: characters of what a stage that had errors has printed
_LOG_SHOWN = 3000


def stages_of(scale: Scale) -> dict[str, tuple[Callable[[Stage], None], float]]:
    """Name to function and seconds, in the order of what matters most."""
    encoders = {
        f"encode-{model}": ((lambda stage, model=model: encode(stage, model)), seconds)
        for model, seconds in zip(scale.models, (90, 60), strict=True)
    }
    return {
        "media": (media, 75), **encoders, "decode": (decode, 75), "extract": (extract, 70), "fp8": (fp8, 75),
        "precision": (precision, 45), "published": (published, 60), "colour": (colour, 30), "memory": (memory, 75),
        "stages": (stages, 45), "jpeg": (jpeg, 25),
    }  # fmt: skip


def _run_stage(name: str, folder: Path, device: str, scale: Scale, seconds: float, videos: list[Path]) -> None:
    """Run a stage in this process."""
    stage = Stage(name, folder, device, scale, seconds, videos)
    if name.startswith("memory-"):
        memory_of(stage, name)
        return
    function, _ = stages_of(scale)[name]
    try:
        function(stage)
    except Exception as error:
        traceback.print_exc()
        stage.row(error=one_line(error))


def _scale(options: Any) -> Scale:
    return TINY if options.device == "cpu" else QUICK if options.quick else FULL


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """All stages that are asked for; the results so far are saved after each."""
    device = options.device
    scale = _scale(options)
    wanted = set(options.only.split(",")) | {"media"} if options.only else None
    results: dict[str, Any] = {}
    started = time.monotonic()
    for name, (_, seconds) in stages_of(scale).items():
        if wanted is not None and name not in wanted:
            continue
        left = TOTAL_SECONDS - (time.monotonic() - started)
        began = time.monotonic()
        error = None
        if left < 15:
            error = "no time left"
        elif device == "cpu":
            _run_stage(name, folder, device, scale, seconds, options.videos)
        else:
            try:
                run_child(name, folder, device, options.quick, min(seconds, left), options.videos)
            except RuntimeError as problem:
                error = str(problem)
        rows = Stage(name, folder, device, scale, 0, []).rows_of(name)
        log = folder / f"{name}.log"
        if (error or any(row.get("error") for row in rows)) and log.exists():
            print(log.read_text(errors="replace")[-_LOG_SHOWN:], file=sys.stderr)
        results[name] = {"seconds": time.monotonic() - began, "rows": rows} | ({"error": error} if error else {})
        print(_shown(name, results[name]), flush=True)
        if options.json:
            _save(options, results)
    return results


def _save(options: Any, results: dict[str, Any]) -> None:
    common.save(options.json, "gpu", {"driver": driver(), "targets": targets(results), "stages": results},
                quick=options.quick)


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def _shown(name: str, result: dict[str, Any]) -> str:
    rows = [{key: value for key, value in row.items() if key != "chosen"} for row in result["rows"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [common.table(f"{name} ({result['seconds']:.0f} s)", [{c: row.get(c) for c in columns} for row in rows])]
    lines += [f"  {row['chosen']}" for row in result["rows"] if row.get("chosen")]
    if "error" in result:
        lines.append(f"  ERROR: {result['error']}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(gpu.__doc__)
    parser.prog = "python -m bench.gpu"
    parser.add_argument("videos", nargs="*", type=Path, help="real videos for the cosines, besides the made ones")
    parser.add_argument("--only", metavar="STAGE,...", help=f"of {', '.join(stages_of(FULL))}")
    parser.add_argument("--device", default="cuda", help=SUPPRESS)
    parser.add_argument("--stage", help=SUPPRESS)
    parser.add_argument("--folder", type=Path, help=SUPPRESS)
    parser.add_argument("--seconds", type=float, help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        scale = _scale(options)
        _run_stage(options.stage, options.folder, options.device, scale, options.seconds, options.videos)
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.exit(1, "bench.gpu: torch sees no CUDA device here\n")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    print(common.table("targets", targets(results)))
