"""What makes the encoder fast on CPUs, and nothing that decides its numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from streamfeat.model.vit import VideoTransformer

BATCH_SIZE = 2


def gains_by_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def optimise(model: VideoTransformer) -> Callable[[Tensor], Tensor]:
    return model.forward_features
