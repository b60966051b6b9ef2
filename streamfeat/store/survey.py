"""Every object in a store, those too that no reader would look for: what ``verify`` goes through.

Nothing here trusts the file: a link is not followed, neither is a second name of an object, which may be one that it
lies in, and an object that cannot be opened is named.
"""

from __future__ import annotations

import dataclasses

import h5py

from . import schema


@dataclasses.dataclass(frozen=True)
class Survey:
    """``videos`` and ``failures`` are names, ``strays`` pairs of an object and what is wrong with its being there."""

    videos: tuple[str, ...]
    failures: tuple[str, ...]
    strays: tuple[tuple[str, str], ...]


def survey(root: h5py.Group) -> Survey:
    """Go through the store whose root group is ``root``, which should hold videos and failures and nothing else."""
    videos: list[str] = []
    failures: list[str] = []
    strays: list[tuple[str, str]] = []
    seen = {schema.object_address(root.id)}
    for key in root:
        if key not in (schema.VIDEOS, schema.FAILURES):
            strays.append((key, "belongs to no store"))
    for top, found in ((schema.VIDEOS, videos), (schema.FAILURES, failures)):
        group = _open(root, top, top, strays, seen) if top in root else None
        if isinstance(group, h5py.Group):
            _walk(group, top, found, strays, seen)
        else:
            strays.append((top, "is missing, or is no group"))
    return Survey(tuple(sorted(videos, key=schema.natural_key)), tuple(sorted(failures, key=schema.natural_key)),
                  tuple(dict.fromkeys(strays)))


def _walk(top: h5py.Group, kind: str, found: list[str], strays: list[tuple[str, str]],
          seen: set[tuple[int, int]]) -> None:
    """Sort the members below ``top`` into names of videos (or failures) and what is neither one nor holds one."""
    folders = [(top, "")]
    while folders:
        group, name = folders.pop()
        prefix = f"{name}/" if name else ""
        own = _own(group, kind)
        if own is not None and name:
            found.append(name)
        keys = _keys(group, name or kind, strays)
        if own is None and name and not keys:
            strays.append((name, "is an empty group"))
        for key in keys:
            if own is not None and key in own:
                continue
            member = _open(group, key, f"{prefix}{key}", strays, seen)
            if isinstance(member, h5py.Group):
                folders.append((member, f"{prefix}{key}"))
            elif member is not None:
                strays.append((f"{prefix}{key}", "is data that belongs to no video"))


def _own(group: h5py.Group, kind: str) -> tuple[str, ...] | None:
    """The members that a video or a failure has itself; None for a group that is neither."""
    try:
        if kind == schema.VIDEOS:
            return schema.RESERVED if schema.is_video_group(group.id) else None
        return () if "stage" in group.attrs else None
    except (KeyError, OSError, RuntimeError):
        return None


def _keys(group: h5py.Group, name: str, strays: list[tuple[str, str]]) -> list[str]:
    try:
        return list(group)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        strays.append((name, f"cannot be listed ({error})"))
        return []


def _open(group: h5py.Group, key: str, name: str, strays: list[tuple[str, str]],
          seen: set[tuple[int, int]]) -> h5py.HLObject | None:
    """The member, or None where it is a link, was seen under another name, or cannot be opened, which is noted."""
    try:
        if isinstance(group.get(key, getlink=True), h5py.HardLink):
            member = group[key]
            where = schema.object_address(member.id)
            if where not in seen:
                seen.add(where)
                return member
        strays.append((name, "is a link to something else"))
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        strays.append((name, f"cannot be opened ({error})"))
    return None
