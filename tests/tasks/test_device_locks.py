"""Each process of a machine has a GPU of its own, whatever number it knows the GPU by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wordmask.tasks import device_locks
from wordmask.tasks.device_locks import lock_device, own_device

# Locks one of the devices that its arguments name, says which, and lives until its input ends.
PROCESS = """
import sys
from pathlib import Path
from wordmask.tasks.device_locks import DeviceTakenError, lock_device

folder, *uuids = sys.argv[1:]
try:
    print(uuids[lock_device(uuids, Path(folder))], flush=True)
except DeviceTakenError as error:
    print(error, flush=True)
sys.stdin.read()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a process which sees some devices, in an order of its own."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*uuids: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(tmp_path), *uuids]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.communicate()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_of_a_machine_share_no_device_and_one_too_many_is_refused(start: Start) -> None:
    orders = [("A", "B", "C"), ("A", "B", "C"), ("C", "B", "A")]
    processes = [start(*order) for order in orders]
    assert sorted(map(answer, processes)) == ["A", "B", "C"]
    refused = answer(start("B", "A"))
    assert "the 2 GPUs that this worker sees" in refused
    assert "Start no more workers on a machine than it has GPUs" in refused
    processes[1].kill()
    processes[1].wait()
    assert answer(start("A", "B", "C")) in "ABC", "the system freed what the killed one had"


def test_a_process_that_sees_one_device_alone_has_that_one(start: Start) -> None:
    assert answer(start("B")) == "B"
    assert answer(start("A", "B")) == "A"
    assert "other processes" in answer(start("B"))


def test_a_process_that_locks_again_keeps_its_device(tmp_path: Path) -> None:
    assert lock_device(["A", "B"], tmp_path) == 0
    assert lock_device(["B", "A"], tmp_path) == 1


def test_a_lock_that_an_earlier_process_of_this_number_left_is_taken_anew(
    tmp_path: Path, start: Start
) -> None:
    (tmp_path / "B.lock").write_text(device_locks._this_process())
    assert lock_device(["A", "B"], tmp_path) == 1
    assert answer(start("B", "A")) == "A", "it is locked"


@pytest.mark.parametrize(
    ("count", "device", "expected"),
    [
        (0, None, None),
        (0, "cuda", "cuda"),
        (1, None, "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_a_worker_locks_a_device_where_settings_leave_the_choice(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    count: int,
    device: str | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr(device_locks, "visible_uuids", lambda: [f"GPU-{n}" for n in range(count)])
    monkeypatch.setattr(device_locks, "locks_folder", lambda: tmp_path)
    assert own_device(device) == expected


def test_locks_lie_where_no_other_user_made_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device_locks.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = device_locks.locks_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match=r"another user.*TMPDIR"):
        device_locks.locks_folder()
