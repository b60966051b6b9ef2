"""The encoder alone: speed in every way it can run, and how near its precisions are."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import numpy as np

from bench import common
from bench.gpu.stage import CLIP_FRAMES, IMAGE_SIZE, Stage


def rate(stage: Stage, encoder: Any, seconds: float | None = None) -> float:
    """Clips per second of an encoder, as a run uses it: the next batch is submitted before the last is read."""
    import torch

    clips = torch.randn(encoder.batch_size, *encoder.clip_shape, device=encoder.device).to(encoder.input_dtype)
    seconds = seconds or stage.scale.seconds
    with encoder.own_stream():
        stage.synchronise()
        encoder.encode(clips)
        waiting, done, started = [encoder.submit(clips)], 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            waiting.append(encoder.submit(clips))
            waiting.pop(0).result()
            done += len(clips)
        waiting.pop().result()
        return (done + len(clips)) / (time.perf_counter() - started)


def best_product(stage: Stage, model: str, batch: int, dtype: Any) -> float:
    """FLOP/s of the fastest matrix product: those of a block for a batch, and a square one."""
    import torch

    from streamfeat.model.vit import SIZES

    size = SIZES[model]
    rows, c, hidden = batch * _tokens(model), size.channels, size.hidden
    square = 8192 if stage.on_gpu else 128
    best, seconds = 0.0, min(0.15, stage.scale.seconds)
    for m, k, n in ((rows, c, 3 * c), (rows, c, hidden), (rows, hidden, c), (square, square, square)):
        left = torch.randn(m, k, device=stage.torch_device()).to(dtype)
        right = torch.randn(n, k, device=stage.torch_device()).to(dtype)
        out = torch.empty(m, n, dtype=dtype, device=stage.torch_device())
        torch.mm(left, right.t(), out=out)
        stage.synchronise()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(5):
                torch.mm(left, right.t(), out=out)
            stage.synchronise()
            done += 5
        best = max(best, done * 2 * m * k * n / (time.perf_counter() - started))
    return best


def _tokens(model: str) -> int:
    from streamfeat.model.vit import SIZES

    return int(np.prod(SIZES[model].grid(CLIP_FRAMES, IMAGE_SIZE)))


def encode(stage: Stage, model: str) -> None:
    """The encoder alone, in every way it can run, against the best product measured between them.

    The cosine is that to the features of the first way, on random clips.
    """
    import torch
    from torch.nn.attention import SDPBackend

    from streamfeat.model import cuda, vit
    from streamfeat.model.vit import SIZES

    weights, flops = stage.load(model), SIZES[model].flops()
    precision, dtype = ("fp16", torch.float16) if stage.on_gpu else ("fp32", torch.float32)
    products = []
    sample = torch.randn(4, 3, CLIP_FRAMES, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    features: list[np.ndarray] = []

    def measure(side: str, batch: int | str = "auto", engine: str = "graph") -> None:
        if stage.left() < 3 * stage.scale.seconds:
            stage.row(side=side, error="no time left")
            return
        with stage.attempt(side=side):
            encoder = stage.encoder(weights, precision, batch=batch, engine=engine)
            products.append(best_product(stage, model, encoder.batch_size, dtype))
            found = rate(stage, encoder)
            speed = {"clips/s": found, "TFLOP/s": found * flops / 1e12, "best product": products[-1] / 1e12}
            share = found * flops / max(products)
            features.append(encoder.encode(sample))
            cosine = common.lowest_cosine(features[-1], features[0])
            stage.row(side=side, by=encoder.how, batch=encoder.batch_size, **speed, share=share, cosine=cosine)
        stage.empty()

    measure("auto")
    measure("eager", engine="eager")
    for batch in stage.scale.batches:
        measure(f"batch {batch}", batch)
    measure("torch.compile", engine="compile")
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        if stage.on_gpu:
            with mock.patch.object(cuda, "attention_backend", lambda *_, backend=backend: backend):
                measure(backend.name.lower().replace("_", " "))
    if stage.on_gpu:
        # what GELU costs: by its approximation, which cuBLAS computes as the product's values leave the registers
        def approximate(mlp: Any, x: Any) -> Any:
            first = torch._addmm_activation(mlp.fc1.bias, x.flatten(0, 1), mlp.fc1.weight.t(), use_gelu=True)
            return mlp.fc2(first).view(x.shape)

        with mock.patch.object(vit.Mlp, "forward", approximate):
            measure("GELU by tanh, in the product")
    # as it is used, once more at the end: a chip that has grown warm
    measure("auto again")


def fp8(stage: Stage) -> None:
    """fp8 against fp16 for the larger model: speed, and the cosine of features of decoded clips."""
    import torch

    model = stage.scale.models[0]
    weights, clips = stage.load(model), stage.clips(8)
    half = stage.encoder(weights, "fp16")
    wanted, speed = half.encode(clips), rate(stage, half)
    stage.row(side="fp16", by=half.how, batch=half.batch_size, **{"clips/s": speed})
    del half
    stage.empty()
    with stage.attempt(side="fp8"):
        from streamfeat.model import fp8 as module

        if reason := module.unavailable(stage.torch_device()):
            raise RuntimeError(reason)
        quick = stage.encoder(weights, "fp8", engine="compile")
        quick._is_checked = True  # the cosine is what is measured here
        found = quick.encode(clips)
        cosine = common.lowest_cosine(found, wanted)
        fast = rate(stage, quick)
        stage.row(side="fp8", by=quick.how, batch=quick.batch_size, **{"clips/s": fast, "over fp16": fast / speed},
                  cosine=cosine, refused=bool(cosine < 0.999))
        stage.row(side="best product in fp8", **{"TFLOP/s": _fp8_product(stage, torch) / 1e12})


def _fp8_product(stage: Stage, torch: Any) -> float:
    from streamfeat.model.fp8 import quantise, scaled_product

    n = 8192
    (a, a_scale), (b, b_scale) = (quantise(torch.randn(n, n, device=stage.torch_device())) for _ in range(2))
    bias = torch.zeros(n, dtype=torch.bfloat16, device=stage.torch_device())
    b_scale = b_scale.view(1, -1)
    scaled_product(a, a_scale, b, b_scale, bias)
    stage.synchronise()
    started = time.perf_counter()
    for _ in range(20):
        scaled_product(a, a_scale, b, b_scale, bias)
    stage.synchronise()
    return 20 * 2 * n**3 / (time.perf_counter() - started)


def precision(stage: Stage) -> None:
    """Features of decoded clips in fp16 against fp32: the lowest cosine of a clip's statistic."""
    for model in dict.fromkeys(stage.scale.models):
        with stage.attempt(model=model):
            weights, clips = stage.load(model), stage.clips(8)
            exact = stage.encoder(weights, "fp32", batch=2, engine="eager").encode(clips)
            found = stage.encoder(weights, "fp16").encode(clips)
            stage.row(model=model, clips=len(clips), cosine=common.lowest_cosine(found, exact))
        stage.empty()
