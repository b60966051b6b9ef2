"""The encoder alone: clips/s, and FLOP/s as a share of the best matrix product of the same precision in the same run.

All sides take the same clips and weights in one process. They take turns, so that a machine that slows down slows them
all; figures are medians over the turns. Features are compared with the published forward pass in fp32.

    python -m bench.encode [--quick] [--json FILE] [--model vit_b]
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import common
from bench.published import PublishedModel, transformers_model, write_checkpoint
from streamfeat.model import load_encoder
from streamfeat.model.encoder import PRECISIONS
from streamfeat.model.vit import SIZES, ModelSize, VideoTransformer
from streamfeat.model.weights import load

BASELINE = "published, fp32"

Side = Callable[[Tensor], Any]


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default="vit_b", type=_size, help="model size (default: vit_b)")
    options = parser.parse_args(arguments)
    rows, notes = measure(options.model, turns=2 if options.quick else 9, compiled=not options.quick)
    print(common.table(f"{options.model.name}, 16 x 224 x 224, {torch.get_num_threads()} threads", rows))
    print(*notes, sep="\n")
    if options.json:
        common.save(options.json, "encode", {"model": options.model.name, "rows": rows, "notes": notes})
    if options.chart:
        speeds = {str(row["side"]): row["clips/s"] for row in rows}
        common.bars(options.chart, f"Encoder, {options.model.name}", "clips/s", {"": speeds})


def _size(name: str) -> ModelSize:
    if name not in SIZES:
        raise ArgumentTypeError(f"no such size; there are {', '.join(SIZES)}")
    return SIZES[name]


def measure(size: ModelSize, turns: int, compiled: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """One row a side, and a line for each peer that is not here."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        write_checkpoint(size.name, weights)
        sides, notes = _sides(size, weights, compiled)
        clips = {batch: torch.rand(batch, 3, 16, 224, 224).mul_(2).sub_(1) for _, _, batch in sides.values()}
        few = max(batch for _, _, batch in sides.values())
        features = {name: _as_numpy(side(clips[few])) for name, (side, _, _) in sides.items()}
        cosines = {name: common.lowest_cosine(found, features[BASELINE]) for name, found in features.items()}
        products = {precision: _products(size, PRECISIONS[precision]) for _, precision, _ in sides.values()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        best: dict[str, list[float]] = {precision: [] for precision in products}
        for _ in range(turns):
            for precision, runs in products.items():
                best[precision].append(max(flops / _seconds(run, 3) for flops, run in runs))
            for name, (side, _, batch) in sides.items():
                seconds[name].append(_seconds(lambda side=side, batch=batch: side(clips[batch]), 1) / batch)
    rows = []
    baseline = statistics.median(seconds[BASELINE])
    for name, (_, precision, batch) in sides.items():
        each = statistics.median(seconds[name])
        rows.append({
            "side": name, "batch": batch, "clips/s": 1 / each, "x published": baseline / each,
            "GFLOP/s": size.flops() / each / 1e9,
            "of best product": size.flops() / each / statistics.median(best[precision]),
            "lowest cosine": f"{cosines[name]:.7f}",
        })  # fmt: skip
    notes += [f"best product in {name}: {statistics.median(found) / 1e9:.0f} GFLOP/s" for name, found in best.items()]
    return rows, notes


def _sides(size: ModelSize, weights: Path, compiled: bool) -> tuple[dict[str, tuple[Side, str, int]], list[str]]:
    """Name to (clips to features, precision, batch), and what is missing."""
    published = PublishedModel(weights)
    sides: dict[str, tuple[Side, str, int]] = {BASELINE: (published, "fp32", 2)}
    notes = []
    for precision in ("fp32", "bf16"):
        encoder = load_encoder(str(weights), precision=precision, device="cpu")
        sides[f"streamfeat, {precision}"] = (encoder.encode, precision, encoder.batch_size)
    for precision in ("fp32", "bf16"):
        try:
            sides[f"transformers, {precision}"] = (transformers_model(weights, PRECISIONS[precision]), precision, 2)
        except ImportError:
            notes.append(f"transformers, {precision}: skipped, not installed")
    if compiled:
        for precision in ("fp32", "bf16"):
            try:
                sides[f"torch.compile, {precision}"] = (_compiled(size, weights, PRECISIONS[precision]), precision, 2)
            except Exception as error:
                notes.append(f"torch.compile, {precision}: skipped, {str(error).splitlines()[0]}")
    return sides, notes


def _compiled(size: ModelSize, weights: Path, dtype: torch.dtype) -> Side:
    """The plain network with fused attention, through torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    model = VideoTransformer(size)
    model.load_state_dict(load(weights).state_dict)
    inductor.freezing = True
    compiled = torch.compile(model.to(dtype).eval().requires_grad_(False).forward_features)

    def run(clips: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = compiled(clips.to(dtype)).float()
            return torch.stack([tokens.mean(1), tokens.std(1), tokens.amax(1)], 1)

    run(torch.zeros(2, 3, 16, 224, 224))
    return run


def _products(size: ModelSize, dtype: torch.dtype) -> list[tuple[int, Callable[[], Any]]]:
    """Matrix products whose best rate is the limit: those of the model, and square ones; (FLOP, run) each."""
    tokens, c, hidden = 1568, size.channels, size.hidden
    shapes = [(tokens, c, 3 * c), (tokens, c, hidden), (tokens, hidden, c), (2 * tokens, c, hidden), (2048, 2048, 2048)]
    runs = []
    for rows, inner, columns in shapes:
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        runs.append((2 * rows * inner * columns, functools.partial(torch.mm, left, right.t(), out=out)))
        if dtype != torch.float32:
            try:
                packed = torch.ops.mkldnn._reorder_linear_weight(right)
            except (AttributeError, RuntimeError):
                continue
            runs.append((2 * rows * inner * columns, functools.partial(
                torch.ops.mkldnn._linear_pointwise, left, packed, None, "none", [], "")))
    return runs


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Of one run: the fastest of ``times``, after one that is not counted."""
    run()
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
