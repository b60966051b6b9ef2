"""One video's labels, in whatever shape they were kept, as one flat array."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamfeat.labels.errors import LabelError

#: labels of all videos together; XD-Violence, the largest data set of the field, has 19 million frames
MAX_LABELS = 50_000_000


def frame_labels(name: str, value: Any) -> np.ndarray:
    """The labels of video ``name``, shape (S,): uint8 when all are 0 or 1, else of the type they have.

    ``value`` is an array or a plain list of shape (S,), (1, S) or (S, 1). Raises LabelError for anything
    else, and for values that are not numbers.
    """
    array = _numbers(name, value)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        raise LabelError(f"the labels of {name!r} have the shape {array.shape}; one number a frame is expected")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise LabelError(f"the labels of {name!r} hold values that are not finite")
    compact = array.astype(np.uint8)
    return compact if array.dtype.kind == "b" or (np.array_equal(compact, array) and (compact <= 1).all()) else array


def video_label(name: str, value: Any) -> int:
    """1 when the video-level label of ``name`` says anomalous, else 0; ``[1.0]``, ``1``, an array of one.

    Raises LabelError for anything but one 0 or 1.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        value = [value]
    array = _numbers(name, value)
    if array.size != 1 or array.item() not in (0, 1):
        raise LabelError(f"the video label of {name!r} is not 0 or 1")
    return int(array.item())


def _numbers(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = _from_list(name, value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise LabelError(f"the labels of {name!r} are of type {_kind(value)}; an array or list of numbers is expected")
    return value


def _from_list(name: str, value: list | tuple) -> np.ndarray:
    # two levels at most, looked at one by one: a list that holds itself twice would grow without end
    if len(value) == 1 and _is_sequence(value[0]):
        value = value[0]
    if isinstance(value, np.ndarray):
        return value
    if value and _is_sequence(value[0]):
        if not all(_is_sequence(item) and len(item) == 1 for item in value):
            raise LabelError(f"the labels of {name!r} are nested lists; one number a frame is expected")
        value = [item[0] for item in value]
    for kind in set(map(type, value)):
        if not issubclass(kind, bool | int | float | np.number | np.bool_):
            raise LabelError(f"the labels of {name!r} hold a {kind.__name__}; one number a frame is expected")
    return np.asarray(value) if value else np.zeros(0, np.uint8)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _kind(value: Any) -> str:
    return f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
