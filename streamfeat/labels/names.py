"""Which video a name in somebody else's file means."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from streamfeat.labels.errors import LabelError
from streamfeat.text import shown

#: endings that names carry in label files and lists but not in a store
_EXTENSIONS = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".wmv", ".flv", ".m4v", ".mpg", ".mpeg", ".ts",
    ".npy", ".npz", ".mat", ".txt",
)
#: what RTFM and MGFN, UR-DMU and XD-Violence append to a video's name for its feature files
_FEATURE_SUFFIX = re.compile(r"(_i3d|__\d)$")


def _slashes(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").strip("/")


def _without_extension(name: str) -> str:
    name = _slashes(name)
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            name = name[: -len(extension)]
            return _FEATURE_SUFFIX.sub("", name) if extension == ".npy" else name
    return name


def _last_part(name: str) -> str:
    return _without_extension(name).rpartition("/")[2]


#: from the nearest to the loosest; each keeps what the one before it did
_VARIANTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("extension", _without_extension),
    ("case", lambda name: _without_extension(name).casefold()),
    ("folder prefix", _last_part),
    ("folder prefix and case", lambda name: _last_part(name).casefold()),
)


@dataclasses.dataclass(frozen=True)
class Match:
    """A name in a file, the video that it means, and what had to be overlooked (None: nothing)."""

    name: str
    video: str
    variant: str | None

    def __str__(self) -> str:
        name = shown(self.name)
        return f"{name} → {shown(self.video)} ({self.variant})" if self.variant else name


class VideoNames:
    """The names of a store's videos, found under the spellings that label files and lists use for them."""

    def __init__(self, videos: Iterable[str]) -> None:
        self._videos = set(videos)
        self._by_variant: list[tuple[str, Callable[[str], str], dict[str, list[str]]]] = []
        for variant, spelling in _VARIANTS:
            spelled = defaultdict(list)
            for video in sorted(self._videos):
                spelled[spelling(video)].append(video)
            self._by_variant.append((variant, spelling, spelled))

    def find(self, name: str) -> Match | None:
        """The video that ``name`` means: exactly, else the nearest variant, else None.

        Raises LabelError when a variant fits several videos.
        """
        if name in self._videos:
            return Match(name, name, None)
        for variant, spelling, spelled in self._by_variant:
            candidates = spelled.get(spelling(name), ())
            if len(candidates) > 1:
                raise LabelError(f"{name!r} could be any of the videos {', '.join(candidates)}: "
                                 "write it as one of them")
            if candidates:
                return Match(name, candidates[0], variant)
        return None

    def match(self, names: Iterable[str]) -> tuple[dict[str, Match], list[str]]:
        """``{video: match}`` and the names that mean no video. Raises LabelError when two mean the same one."""
        matches: dict[str, Match] = {}
        without_video = []
        for name in names:
            match = self.find(name)
            if match is None:
                without_video.append(name)
            elif match.video in matches:
                raise LabelError(f"{matches[match.video].name!r} and {name!r} both mean the video {match.video!r}: "
                                 "leave out one of them")
            else:
                matches[match.video] = match
        return matches, without_video
