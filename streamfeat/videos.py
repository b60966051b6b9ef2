"""Finding and naming the videos: files, folders, folders of numbered frames, published lists."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

#: Taken for videos when found in a folder; a file named explicitly may have any extension.
VIDEO_EXTENSIONS = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
IMAGE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})


class InputError(Exception):
    """The inputs cannot be used: nothing found, two videos with one name, an entry of a list not found."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One input: a video file, or a folder of numbered frames."""

    #: path below the input folder without extension, ``/``-separated, valid Unicode; unique within a run
    name: str
    path: Path
    kind: Literal["file", "frames"] = "file"

    def stat(self) -> tuple[int, int]:
        """Bytes, and the time of the last change in nanoseconds; of frames the sum and the newest.

        Raises OSError when the video is not there any more.
        """
        if self.kind == "file":
            status = self.path.stat()
            return status.st_size, status.st_mtime_ns
        statuses = [frame.stat() for frame in list_frames(self.path)]
        if not statuses:
            raise FileNotFoundError(f"no frames in {display(self.path)}")
        return sum(status.st_size for status in statuses), max(status.st_mtime_ns for status in statuses)


def natural_key(text: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Sorting key that takes runs of digits for numbers: ``frame_9`` comes before ``frame_10``."""
    parts = (part for part in re.split(r"([0-9]+)", text) if part)
    return tuple((0, int(part)) if part[0] in "0123456789" else (1, part.casefold()) for part in parts), text


def list_frames(folder: str | Path) -> list[Path]:
    """The numbered images of a folder in natural order of their names. Raises OSError.

    Images without a number in their name, and hidden ones, are no frames.
    """
    with os.scandir(folder) as entries:
        frames = [entry.name for entry in entries if _is_frame(entry)]
    return [Path(folder, name) for name in sorted(frames, key=natural_key)]


def find_videos(inputs: Sequence[str | os.PathLike[str]], root: str | Path | None = None) -> list[Video]:
    """The videos that ``inputs`` stand for, sorted naturally by name, each once.

    Args:
        inputs: video files (of any extension), folders (searched recursively for files with a known
            extension and for folders of numbered frames), folders of frames, and ``@list.txt``.
        root: folder below which the entries of lists are looked up; by default first the list's own folder,
            then the current one.

    A list has one path or bare name a line, as in the published ``shanghaitech.txt``. What follows it on the
    line (frame counts, labels) is left out, as are empty lines and comments after ``#``. A bare name is that
    of a video file of any known extension or of a frame folder, at any depth below the root if there is only
    one such. A video from a list is named as the list has it.

    Raises:
        InputError: if nothing was found, an entry is missing, or two different inputs have one name.
    """
    if root is not None and not Path(root).is_dir():
        raise InputError(f"no folder {display(Path(root))} to look up list entries in (--root)")

    found: dict[str, Video] = {}
    for given in inputs:
        for video in _find(os.fspath(given), None if root is None else Path(root)):
            other = found.setdefault(video.name, video)
            if not _same_file(other.path, video.path):
                raise InputError(
                    f"two videos would be called {video.name!r}: {display(other.path)} and {display(video.path)}; "
                    "rename one, or give a folder that holds both where they lie in different ones"
                )
    if not found:
        looked_in = ", ".join(printable(os.fspath(given)) for given in inputs) or "no input"
        raise InputError(
            f"no video found in {looked_in}: looked for video files ({_listed(VIDEO_EXTENSIONS)}) and folders of "
            f"numbered frames ({_listed(IMAGE_EXTENSIONS)})"
        )
    return sorted(found.values(), key=lambda video: natural_key(video.name))


def printable(text: str) -> str:
    """``text`` with what is not valid Unicode escaped: file names may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def display(path: Path) -> str:
    """A path for a message."""
    return printable(str(path))


def _find(given: str, root: Path | None) -> Iterator[Video]:
    if not given:
        raise InputError("an input is empty: give a file, a folder or @list.txt")
    path = Path(given)
    if given.startswith("@") and not path.exists():
        yield from _read_list(Path(given[1:]), root)
    elif path.is_dir():
        yield from _search(path)
    elif path.is_file():
        yield Video(_name(Path(path.name), "file"), path)
    elif path.exists():
        raise InputError(f"{display(path)} is neither a file nor a folder")
    else:
        raise InputError(f"no such file or folder: {display(path)}")


def _search(folder: Path) -> Iterator[Video]:
    """The videos in a folder, or the folder itself if it holds frames."""
    for path, kind in _walk(folder, frozenset()):
        relative = path.relative_to(folder)
        name = _name(relative, kind) if relative.parts else printable(Path(os.path.abspath(folder)).name)
        yield Video(name, path, kind)


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, Literal["file", "frames"]]]:
    """Paths of videos. Links are followed, but not back to a folder that they lie in."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"cannot read {display(folder)}: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    files = [entry for entry in visible if _extension(entry.name) in VIDEO_EXTENSIONS and _is(entry.is_file)]
    # images beside videos are their thumbnails
    if not files and any(map(_is_frame, visible)):
        yield folder, "frames"
    for entry in files:
        yield folder / entry.name, "file"
    for entry in visible:
        if _is(entry.is_dir):
            yield from _walk(folder / entry.name, above | {identity})


def _read_list(path: Path, root: Path | None) -> Iterator[Video]:
    try:
        # utf-8-sig: lists saved on Windows begin with a byte order mark
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the list {display(path)}: {error.strerror}") from error
    shelf = _Shelf([path.parent, Path()] if root is None else [root])
    for number, line in enumerate(lines, 1):
        readings = _readings(line)
        if not readings:
            continue
        try:
            yield shelf.look_up(readings)
        except InputError as error:
            advice = " (--root says where the videos are)" if root is None else ""
            raise InputError(f"{display(path)}, line {number}: {error}{advice}") from None


def _readings(line: str) -> list[str]:
    """The entries that a line may mean: all of it, as names may have spaces, then ever fewer columns of it."""
    text = re.sub(r"(^|\s)#.*", "", line).strip()
    readings = []
    while text:
        readings.append(text.strip("\"'"))
        columns = re.match(r"(.*[^\s,;])[\s,;]+[^\s,;]*$", text)
        text = columns[1] if columns else ""
    return readings


class _Shelf:
    """Looks up list entries below folders, which are searched once, and only if paths do not suffice."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._by_tail: dict[str, list[Video]] | None = None

    def look_up(self, readings: Sequence[str]) -> Video:
        """The video that the first possible one of ``readings`` means. Raises InputError."""
        for look_up in (self._path, self._bare_name):
            for entry in readings:
                video = look_up(entry)
                if video is not None:
                    return video
        below = " or ".join(display(Path(os.path.abspath(folder))) for folder in self._folders)
        raise InputError(f"no video {readings[0]!r} below {below}")

    def _path(self, entry: str) -> Video | None:
        for folder in self._folders:
            path = folder / entry
            if path.is_file():
                return Video(self._name_of(path, entry, "file"), path)
            if path.is_dir() and list_frames(path):
                return Video(self._name_of(path, entry, "frames"), path, "frames")
        return None

    def _name_of(self, path: Path, entry: str, kind: str) -> str:
        if not Path(entry).is_absolute():
            return _name(Path(*(part for part in Path(entry).parts if part != "..")), kind)
        for folder in self._folders:
            try:
                return _name(path.relative_to(os.path.abspath(folder)), kind)
            except ValueError:
                continue
        return _name(Path(path.name), kind)

    def _bare_name(self, entry: str) -> Video | None:
        if self._by_tail is None:
            self._by_tail = {}
            for folder in self._folders:
                for video in _search(folder):
                    parts = video.name.split("/")
                    for start in range(len(parts)):
                        self._by_tail.setdefault("/".join(parts[start:]), []).append(video)
        # the extension of a list is not always that of the file: the published frame folders have none
        for name in (_name(Path(entry), "frames"), _name(Path(entry), "file")):
            found = self._by_tail.get(name, ())
            whole = [video for video in found if video.name == name]
            candidates = {os.path.realpath(video.path): video for video in whole or found}
            if len(candidates) > 1:
                one, other, *_ = candidates.values()
                raise InputError(
                    f"{entry!r} may be {display(one.path)} or {display(other.path)}; write more of its path"
                )
            for video in candidates.values():
                return dataclasses.replace(video, name=name)
        return None


def _name(relative: Path, kind: str) -> str:
    if kind == "file":
        relative = relative.with_name(relative.stem)
    return printable(relative.as_posix())


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_frame(entry: os.DirEntry[str]) -> bool:
    stem, extension = os.path.splitext(entry.name)
    numbered = not entry.name.startswith(".") and re.search("[0-9]", stem) is not None
    return numbered and extension.lower() in IMAGE_EXTENSIONS and _is(entry.is_file)


def _is(question) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _listed(extensions: frozenset[str]) -> str:
    return ", ".join(sorted(extension[1:] for extension in extensions))
