"""Which numbers of a clip's feature are exported, in which shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from streamfeat.export.errors import ExportError
from streamfeat.store import FeatureStore, StoredVideo
from streamfeat.stored import recipe_of

#: bytes of features read at a time, so that memory does not grow with the length of a video
BLOCK_BYTES = 16 << 20


class Selection:
    """The rows of a store as they are exported.

    ``stats`` selects statistics by name, in that order (None: all that are stored); ``flatten`` joins
    statistics and channels into one dimension. One statistic has no dimension of its own, as in the store.
    """

    def __init__(self, store: FeatureStore, stats: Sequence[str] | None = None, flatten: bool = False) -> None:
        dims, shape = store.header.dims, store.header.row_shape
        stored = recipe_of(store).stats
        if stats is not None:
            unknown = [name for name in stats if name not in stored]
            if unknown:
                raise ExportError(f"{store.path} has no statistic {', '.join(unknown)}; it has {', '.join(stored)}")
            if not stats or len(set(stats)) < len(stats):
                raise ExportError(f"choose each statistic once, and at least one of {', '.join(stored)}")
        chosen = list(stored if stats is None else stats)
        self.crops = shape[dims.index("crop")] if "crop" in dims else 1
        self._has_crops = "crop" in dims
        self._stats = [stored.index(name) for name in chosen] if "statistic" in dims else None
        #: statistics per clip that the exported files have a dimension for
        self.statistics = len(chosen) if not flatten else 1
        channels = shape[-1]
        #: of one crop of a clip, and of a whole clip
        self.crop_shape: tuple[int, ...] = (len(chosen), channels)
        if self.statistics == 1:
            self.crop_shape = (len(chosen) * channels,)
        self.row_shape = ((self.crops,) if self._has_crops else ()) + self.crop_shape

    def blocks(self, video: StoredVideo, clips: int, crop: int | None = None,
               dtype: str = "<f4") -> Iterator[np.ndarray]:
        """The first ``clips`` rows of ``video``, a few at a time: ``(n, *row_shape)``, C order.

        With ``crop``, that one alone: ``(n, *crop_shape)``.
        """
        dataset = video.feature_dataset
        step = max(1, BLOCK_BYTES // max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize))
        for start in range(0, clips, step):
            rows = dataset[start : min(start + step, clips)]
            if self._stats is not None:
                rows = rows[..., self._stats, :]
            rows = rows.reshape(len(rows), *self.row_shape)
            if crop is not None and self._has_crops:
                rows = rows[:, crop]
            yield np.ascontiguousarray(rows, dtype)
