"""Disks that misbehave: stand-ins for the ``os`` of ``streamfeat.store.journal.disk``."""

from __future__ import annotations

import os
import random

CHANGES = ("open", "pwrite", "ftruncate", "fsync", "replace", "unlink")
SECTOR = 512


class WatchedOS:
    """``os``, but ``before(call, arguments)`` runs before every call that changes the disk."""

    def __init__(self, before):
        self._before = before

    def __getattr__(self, name):
        call = getattr(os, name)
        if name not in CHANGES:
            return call

        def watched(*arguments, **options):
            if name != "open" or arguments[1] & os.O_CREAT:
                self._before(name, arguments)
            if name == "open" and arguments[1] & os.O_WRONLY:
                path, flags, *mode = arguments  # so that the test can look at what it is about to damage
                arguments = (path, flags ^ os.O_WRONLY | os.O_RDWR, *mode)
            return call(*arguments, **options)

        return watched


class LossyDisk:
    """``os``, with a record from which the disk after a power failure at any moment can be made.

    What a file was synced with stays; of what was written since, each sector may or may not have arrived. Of the
    names created, moved and removed since their folder was synced, the first few may have arrived.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.history: list[tuple] = []
        self._files: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._made = 0
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            file_id = self._new_name(os.path.join(folder, name))
            self.history += [("write", file_id, 0, content), ("sync", file_id), ("sync folder",)]

    def _new_name(self, path):
        self._made += 1
        self._names[path] = self._made
        self.history.append(("link", os.path.basename(path), self._made))
        return self._made

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags, *mode):
        fd = os.open(path, flags, *mode)
        if os.path.isdir(path):
            self._files[fd] = -1
        else:
            file_id = self._names.get(path) or self._new_name(path)
            if flags & os.O_TRUNC:
                self.history.append(("truncate", file_id, 0))
            self._files[fd] = file_id
        return fd

    def pwrite(self, fd, data, offset):
        count = os.pwrite(fd, data, offset)
        self.history.append(("write", self._files[fd], offset, bytes(data[:count])))
        return count

    def ftruncate(self, fd, size):
        os.ftruncate(fd, size)
        self.history.append(("truncate", self._files[fd], size))

    def fsync(self, fd):
        self.history.append(("sync folder",) if self._files[fd] < 0 else ("sync", self._files[fd]))

    def replace(self, old, new):
        os.replace(old, new)
        self._names[new] = self._names.pop(old)
        self.history.append(("move", os.path.basename(old), os.path.basename(new)))

    def unlink(self, path):
        os.unlink(path)
        del self._names[path]
        self.history.append(("remove", os.path.basename(path)))

    def after_power_failure(self, moment: int, chance: random.Random, folder: str) -> None:
        """Put into ``folder`` what may be on the disk if the power fails before ``history[moment]``."""
        synced: dict[int, int] = {}
        names_synced = 0
        for index, event in enumerate(self.history[:moment]):
            if event[0] == "sync":
                synced[event[1]] = index
            elif event[0] == "sync folder":
                names_synced = index
        pending = [
            index for index in range(names_synced, moment)
            if self.history[index][0] in ("link", "move", "remove")
        ]
        last_name = chance.choice([names_synced, *(index + 1 for index in pending)])
        files: dict[int, bytearray] = {}
        names: dict[str, int] = {}
        luck = chance.choice((0.0, 0.5, 1.0))
        for index, (kind, *event) in enumerate(self.history[:moment]):
            if kind == "write":
                file_id, offset, data = event
                content = files.setdefault(file_id, bytearray())
                for start in range(offset - offset % SECTOR, offset + len(data), SECTOR):
                    if index < synced.get(file_id, 0) or chance.random() < luck:
                        begin, end = max(start, offset), min(start + SECTOR, offset + len(data))
                        content.extend(bytes(max(0, end - len(content))))
                        content[begin:end] = data[begin - offset : end - offset]
            elif kind == "truncate":
                file_id, size = event
                content = files.setdefault(file_id, bytearray())
                if index < synced.get(file_id, 0) or chance.random() < luck:
                    del content[size:]
                    content.extend(bytes(size - len(content)))
            elif index < last_name:
                if kind == "link":
                    names[event[0]] = event[1]
                elif kind == "move":
                    names[event[1]] = names.pop(event[0])
                elif kind == "remove":
                    del names[event[0]]
        for name, file_id in names.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(files.get(file_id, b""))
