"""The encoder alone: clips/s, and FLOP/s as a share of the best matrix product of the same precision in the same run.

All sides take the same clips and weights. They take turns, so that a machine that slows down slows them
all; figures are medians over the turns, and ratios are taken turn by turn. Features are compared with the published
forward pass in fp32; a side whose features differ does not count. What torch.compile makes runs in a process of its
own, as a compilation that fails can leave torch unusable. The best product is the fastest found of several
shapes, with all cores on one product and with a product for each core.

    python -m bench.encode [--quick] [--json FILE] [--model vit_b]
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import common
from bench.processes import Worker, serve
from bench.published import PublishedModel, transformers_model, write_checkpoint
from streamfeat.model import int8, load_encoder
from streamfeat.model.encoder import PRECISIONS
from streamfeat.model.vit import SIZES, ModelSize

#: name, precision, batch
Key = tuple[str, str, int]
Side = Callable[[Tensor], Any]

BASELINE: Key = ("published", "fp32", 2)
#: below this a side computes something else
LOWEST_COSINE = 0.999


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--model", action="append", type=_size, help="size (default: vit_s, vit_b; quick: vit_s)")
    parser.add_argument("--turns", type=int, help="how often each side runs (default: 3)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes a minute or two")
    parser.add_argument("--serve", nargs=3, help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(_answer(*options.serve))
        return
    sizes = options.model or [SIZES["vit_s"], *([] if options.quick else [SIZES["vit_b"]])]
    results = []
    for size in sizes:
        # what compiles for minutes does so for the largest size only
        compiled = _compiled(options) if size is sizes[-1] else ()
        found = measure(size, options.turns or 3, (2,) if options.quick else (1, 2, 4), compiled)
        results.append(found)
        print(report(found), flush=True)
    if options.json:
        common.save(options.json, "encode", results, quick=options.quick)
    if options.chart:
        groups = {
            found["model"]: {f"{r['side']}, {r['precision']}, batch {r['batch']}": r["clips/s"] for r in found["rows"]}
            for found in results
        }
        common.bars(options.chart, "Encoder", "clips/s", groups)


def _compiled(options: Any) -> tuple[Key, ...]:
    """The sides that run through torch.compile; quickly only one, as each compiles for half a minute."""
    if options.no_compile:
        return ()
    one = ("transformers, compiled", "fp32", 2)
    return (one,) if options.quick else (("published, compiled", "fp32", 2), one, ("transformers, compiled", "bf16", 2))


def _size(name: str) -> ModelSize:
    if name not in SIZES:
        raise ArgumentTypeError(f"no such size; there are {', '.join(SIZES)}")
    return SIZES[name]


def report(found: dict[str, Any]) -> str:
    title = f"{found['model']}, 16 x 224 x 224, {found['threads']} threads"
    rows = [row | {"lowest cosine": f"{row['lowest cosine']:.7f}"} for row in found["rows"]]
    for row in rows:
        del row["seconds"]
    best = [f"  best product in {name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in found["best product"].items()]
    return "\n".join([common.table(title, rows), *best])


def measure(size: ModelSize, turns: int, batches: tuple[int, ...], compiled: tuple[Key, ...]) -> dict[str, Any]:
    """One row a side, and a line for each that is not here or computes something else."""
    left_out: list[str] = []

    def leave_out(line: str) -> None:
        left_out.append(line)
        print(line, file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        weights = Path(folder) / "weights.pth"
        write_checkpoint(size.name, weights)
        sides: dict[Key, Side] = {}
        cosines: dict[Key, float] = {}
        clips = torch.rand(max(*batches, 2), 3, 16, 224, 224).mul_(2).sub_(1)
        reference = PublishedModel(weights)(clips[:2]).numpy()
        for key, build in _builders(weights, batches, compiled, processes).items():
            name = f"{key[0]}, {key[1]}, batch {key[2]}"
            try:
                # also what warms each side up, and compiles
                side = build()
                features = _as_numpy(side(clips[: key[2]]))
            except Exception as error:  # no compiler, not installed, not supported: a peer's own, of any kind
                if key[0] == "streamfeat":
                    raise
                leave_out(f"skipped: {name}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:140]}")
                continue
            cosine = common.lowest_cosine(features[:2], reference[: len(features[:2])])
            if cosine >= LOWEST_COSINE:
                sides[key], cosines[key] = side, cosine
            elif key[0] == "streamfeat":
                raise SystemExit(f"bench.encode: {name} computes something else: cosine {cosine:.5f}")
            else:
                leave_out(f"refused: {name}: computes something else: cosine {cosine:.5f}")
        seconds: dict[Key, list[float]] = {key: [] for key in sides}
        products = {precision: _products(size, precision) for _, precision, _ in sides}
        best: dict[str, list[float]] = {precision: [] for precision in products}
        for _ in range(turns):
            for precision, runs in products.items():
                best[precision].append(max(flops / _fastest(run, 3) for flops, run in runs))
            for key, side in sides.items():
                seconds[key].append(_fastest(lambda side=side, batch=key[2]: side(clips[:batch]), 1) / key[2])
    peak = {precision: statistics.median(found) for precision, found in best.items()}
    rows = []
    for key, found in seconds.items():
        rate = size.flops() / statistics.median(found)
        rows.append({
            "side": key[0], "precision": key[1], "batch": key[2], "clips/s": 1 / statistics.median(found),
            "x published": common.median_ratio(seconds[BASELINE], found), "GFLOP/s": rate / 1e9,
            "of best product": rate / peak[key[1]], "lowest cosine": cosines[key], "seconds": found,
        })  # fmt: skip
    return {
        "model": size.name, "threads": torch.get_num_threads(), "turns": turns, "rows": rows, "best product": peak,
        "left out": left_out,
    }  # fmt: skip


def _builders(
    weights: Path, batches: tuple[int, ...], compiled: tuple[Key, ...], processes: contextlib.ExitStack
) -> dict[Key, Callable[[], Side]]:
    """How each side is made; what it starts ends with ``processes``."""
    builders: dict[Key, Callable[[], Side]] = {BASELINE: lambda: PublishedModel(weights)}
    for precision in ("fp32", "bf16"):
        for batch in batches:
            builders["streamfeat", precision, batch] = lambda precision=precision, batch=batch: load_encoder(
                str(weights), precision=precision, device="cpu", batch_size=batch
            ).encode
        builders["transformers", precision, 2] = lambda precision=precision: transformers_model(
            weights, PRECISIONS[precision]
        )
    if (reason := int8.unavailable(torch.device("cpu"))) is None:
        builders["streamfeat", "int8", 2] = lambda: load_encoder(
            str(weights), precision="int8", device="cpu", batch_size=2
        ).encode
    else:
        print(f"skipped: streamfeat, int8: {reason}", file=sys.stderr)
    for key in compiled:
        builders[key] = lambda key=key: processes.enter_context(contextlib.closing(_Apart(*key[:2], weights)))
    return builders


class _Apart:
    """A compiled side in a process of its own, which keeps the clips that it has seen."""

    def __init__(self, name: str, precision: str, weights: Path) -> None:
        self._worker = Worker("bench.encode", "--serve", name, precision, str(weights), patience=900)
        self._folder = weights.parent

    def __call__(self, clips: Tensor) -> Any:
        given, features = self._folder / f"clips-{len(clips)}.pt", self._folder / "features.npy"
        if not given.exists():
            torch.save(clips.clone(), given)
        answer = self._worker.ask({"clips": str(given), "features": str(features)})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return np.load(features)

    def close(self) -> None:
        self._worker.close()


def _answer(name: str, precision: str, weights: str) -> Callable[[dict[str, str]], dict[str, str]]:
    """What the process of a compiled side answers: the features of the clips in a file, in another."""
    import torch._inductor.config as inductor

    inductor.freezing = True

    @functools.cache
    def side() -> Side:
        plain = PublishedModel if name.startswith("published") else functools.partial(
            transformers_model, dtype=PRECISIONS[precision]
        )
        return torch.compile(plain(weights=Path(weights)))

    seen = functools.cache(torch.load)

    def answer(question: dict[str, str]) -> dict[str, str]:
        try:
            np.save(question["features"], side()(seen(question["clips"])).numpy())
        except Exception as error:  # a compiler's own, of any kind: it is this side's answer
            return {"error": " ".join(str(error).split())[:140] or type(error).__name__}
        return {}

    return answer


def _products(size: ModelSize, precision: str) -> list[tuple[int, Callable[[], Any]]]:
    """Matrix products whose best rate is the limit: those of the model, and square ones; (operations, run) each."""
    dtype = torch.int8 if precision == "int8" else PRECISIONS[precision]
    product = torch._int_mm if precision == "int8" else torch.mm
    runs: list[tuple[int, Callable[[], Any]]] = []
    for rows, inner, columns in _shapes(size):
        left, right = torch.randn(rows, inner).mul_(30).to(dtype), torch.randn(columns, inner).mul_(30).to(dtype)
        out = torch.empty(rows, columns, dtype=torch.int32 if precision == "int8" else dtype)
        flops = 2 * rows * inner * columns
        runs.append((flops, functools.partial(product, left, right.t(), out=out)))
        runs.append((torch.get_num_threads() * flops, functools.partial(_on_each_core, product, left, right)))
        if dtype not in (torch.float32, torch.int8):
            try:
                packed = torch.ops.mkldnn._reorder_linear_weight(right)
            except (AttributeError, RuntimeError):
                continue
            runs.append((flops, functools.partial(
                torch.ops.mkldnn._linear_pointwise, left, packed, None, "none", [], "")))
    return runs


def _shapes(size: ModelSize) -> list[tuple[int, int, int]]:
    tokens, c, hidden = 1568, size.channels, size.hidden
    return [(tokens, c, 3 * c), (tokens, c, hidden), (tokens, hidden, c), (2 * tokens, c, hidden), (2048, 2048, 2048)]


@functools.cache
def _cores() -> ThreadPoolExecutor:
    def alone() -> None:
        torch.get_num_threads()  # initialises this thread; otherwise its first operation undoes the next line
        torch.set_num_threads(1)

    return ThreadPoolExecutor(torch.get_num_threads(), initializer=alone)


def _on_each_core(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> None:
    """The product once on each core, all at the same time."""
    pool = _cores()
    for done in [pool.submit(product, left, right.t()) for _ in range(torch.get_num_threads())]:
        done.result()


def _fastest(run: Callable[[], Any], times: int) -> float:
    """Seconds of one run: the fastest of ``times``."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def _as_numpy(features: Any) -> Any:
    return features.numpy() if isinstance(features, Tensor) else features


if __name__ == "__main__":
    main()
