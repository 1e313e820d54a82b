"""A file system in memory whose every change is a step that a test can stop, lose or hold back."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fsspec import AbstractFileSystem


@dataclass(frozen=True)
class Change:
    """A file that is written, or removed where `data` is None."""

    path: str
    data: bytes | None
    only_if_new: bool = False


@dataclass
class Files:
    """The content of a store. A copy of it costs next to nothing, as bytes are shared."""

    by_path: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    changes: int = 0  # so far; the time of a file is the number of its change

    def copy(self) -> Files:
        return Files(dict(self.by_path), self.changes)

    def apply(self, change: Change) -> None:
        if change.only_if_new and change.path in self.by_path:
            raise FileExistsError(change.path)
        self.changes += 1
        if change.data is None:
            self.by_path.pop(change.path, None)
        else:
            self.by_path[change.path] = (change.data, self.changes)


class SteppedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files in memory. Every change goes through `on_change`, which applies it, or does not."""

    protocol = "stepped"
    cachable = False

    def __init__(self, files: Callable[[], Files], on_change: Callable[[Change], None]) -> None:
        super().__init__()
        self._files = files
        self._on_change = on_change

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        path = path.rstrip("/")
        found = {}
        for name, (data, changed) in sorted(self._files().by_path.items()):
            if name == path:
                found[name] = _info(name, data, changed)
            elif name.startswith(f"{path}/"):
                child, slash, _ = name.removeprefix(f"{path}/").partition("/")
                child_path = f"{path}/{child}"
                found[child_path] = _folder(child_path) if slash else _info(name, data, changed)
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        file = self._files().by_path.get(path)
        if file is not None:
            return _info(path, *file)
        self.ls(path)
        return _folder(path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_options: Any
    ) -> bytes:
        return self._data(path)[start:end]

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> io.BytesIO:
        if mode != "rb":
            raise NotImplementedError(mode)
        return _File(path, self._data(path))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_options: Any) -> None:
        self._on_change(Change(path, bytes(value), only_if_new=mode == "create"))

    def rm_file(self, path: str) -> None:
        self._data(path)
        self._on_change(Change(path, None))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: as in an object store, folders are but names."""

    def _data(self, path: str) -> bytes:
        if path not in self._files().by_path:
            raise FileNotFoundError(path)
        return self._files().by_path[path][0]


class _File(io.BytesIO):
    """A file that is read, with the attributes of fsspec's."""

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(data)
        self.path = path
        self.size = len(data)


def _info(name: str, data: bytes, changed: int) -> dict[str, Any]:
    etag = f"{hash(data):x}"
    return {"name": name, "size": len(data), "type": "file", "ETag": etag, "mtime": f"{changed:09}"}


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}
