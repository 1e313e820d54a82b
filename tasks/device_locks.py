"""One GPU for each process of a machine, by a file that the process keeps locked."""

from __future__ import annotations

import fcntl
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch


class DeviceTakenError(RuntimeError):
    """Other processes have every GPU that this one sees. The message says what to do."""


def own_device(device: str | None) -> str | None:
    """Return the GPU that this process has for itself, where settings leave the choice.

    Args:
        device: of the settings. One with a number, and the CPU, stay what they are.

    Raises:
        DeviceTakenError: no GPU is left.
    """
    if device not in (None, "cuda"):
        return device
    uuids = visible_uuids()
    if not uuids:
        return device
    return f"cuda:{lock_device(uuids, locks_folder())}"


def visible_uuids() -> list[str]:
    """Return what names each GPU that this process sees, in the order of their numbers."""
    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]


def locks_folder() -> Path:
    """Return the folder of this user's locks on this machine, and make it.

    Raises:
        PermissionError: another user made it.
    """
    user = os.getuid()
    folder = Path(tempfile.gettempdir(), f"wordmask-gpus-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != user or folder.is_symlink():
        raise PermissionError(
            f"{folder}: belongs to another user; remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def lock_device(uuids: Sequence[str], folder: Path) -> int:
    """Lock one of several devices until this process ends, and return its position.

    A process that locks again gets the same one. The system frees a lock with its process, however
    that ends.

    Args:
        uuids: names of the devices, which are the same in every process. Their numbers are not:
            CUDA_VISIBLE_DEVICES gives each process its own.
        folder: of the locks.

    Raises:
        DeviceTakenError: other processes have all of them.
    """
    me = _this_process()
    paths = [folder / f"{uuid}.lock" for uuid in uuids]
    holders = [_holder(path) for path in paths]
    if me in holders:
        position = holders.index(me)
        _lock(paths[position], me)  # unlocked, it is left from an earlier process of this number
        return position
    for position, path in enumerate(paths):
        if _lock(path, me):
            return position
    raise DeviceTakenError(
        f"other processes on {platform.node()} have the {len(uuids)} GPUs that this worker sees"
        f" ({', '.join(map(_holder, paths))}). Start no more workers on a machine than it has GPUs,"
        " or let workers share one with --device cuda:0"
    )


def _this_process() -> str:
    namespace = ""
    if Path("/proc/self/ns/pid").exists():  # containers may share the folder, and count anew
        namespace = f" in {os.readlink('/proc/self/ns/pid')}"
    return f"process {os.getpid()}{namespace}"


def _holder(path: Path) -> str:
    """Return the process that wrote into a lock's file, "" if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _lock(path: Path, holder: str) -> bool:
    """Lock a file until this process ends, and write who did. Return whether that could be done."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    os.ftruncate(descriptor, 0)
    os.write(descriptor, holder.encode())
    return True  # the descriptor stays open: closing it would free the device
