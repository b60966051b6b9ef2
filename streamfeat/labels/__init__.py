"""Ground truth in every form that the field keeps it in, read safely and written as the published pickles.

:func:`read_labels` and :func:`read_video_labels` read, :func:`write_frame_labels` and
:func:`write_video_labels` write, :func:`convert_labels` does both.
"""

from streamfeat.labels.convert import Converted, convert_labels
from streamfeat.labels.errors import LabelError
from streamfeat.labels.names import Match, VideoNames
from streamfeat.labels.publish import write_frame_labels, write_video_labels
from streamfeat.labels.read import Labels, read_labels, read_video_labels

__all__ = [
    "Converted", "LabelError", "Labels", "Match", "VideoNames",
    "convert_labels", "read_labels", "read_video_labels", "write_frame_labels", "write_video_labels",
]
