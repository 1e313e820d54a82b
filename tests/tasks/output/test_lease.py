"""One run at a time on an output, whoever dies."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wordmask.schemas.runs import Lease
from wordmask.tasks.output import lease
from wordmask.tasks.output.catalog import LEASE_PATH
from wordmask.tasks.output.lease import (
    LeaseHandle,
    LeaseLostError,
    OutputInUseError,
    acquire_lease,
    read_lease,
)
from wordmask.tasks.storage import Store

OTHER = {"token": "t", "run_id": "other", "since": "2026-11-01T00:00:00+00:00"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def put(output: Store, host: str, pid: int, renewed: str) -> None:
    output.write_bytes(
        LEASE_PATH, Lease(**OTHER, host=host, pid=pid, renewed=renewed).model_dump_json().encode()
    )


def test_a_second_run_fails_and_names_the_first_and_its_start(
    tmp_path: Path, output: Store
) -> None:
    with (
        acquire_lease(output, "first"),
        pytest.raises(
            OutputInUseError, match=rf"run first \(process {os.getpid()} on .*since 20.*--wait"
        ),
        acquire_lease(output, "second"),
    ):
        pass
    assert not (tmp_path / LEASE_PATH).exists()
    with acquire_lease(output, "third"):
        assert read_lease(output).run_id == "third"  # type: ignore[union-attr]


def test_a_second_run_waits_if_asked_to(output: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with acquire_lease(output, "second", wait=True):
            order.append("second begins")

    with acquire_lease(output, "first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first ends")
    thread.join(5)
    assert order == ["first ends", "second begins"]


def test_a_lease_is_renewed_until_it_is_released(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(f"2026-11-25T00:00:{second:02}+00:00" for second in range(60))
    monkeypatch.setattr(lease, "_now", lambda: next(ticks))
    with acquire_lease(output, "first"):
        before = read_lease(output)
        time.sleep(0.4)
        after = read_lease(output)
    assert before is not None
    assert after is not None
    assert after.renewed > before.renewed
    assert after.since == before.since


def test_the_lease_of_a_dead_process_of_this_machine_is_over(output: Store) -> None:
    code = (
        "import os, time\nfrom wordmask.tasks.output.lease import acquire_lease\n"
        "from wordmask.tasks.storage import Store\n"
        f"with acquire_lease(Store.open({output.root!r}), 'killed'):"
        " print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputInUseError, match="run killed"),
            acquire_lease(output, "next"),
        ):
            pass
        other.kill()
        other.wait()
    with acquire_lease(output, "next"):
        pass


def test_the_lease_of_another_machine_is_over_when_it_is_not_renewed(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output, "elsewhere", 1, lease._now())
    with (
        pytest.raises(OutputInUseError, match="process 1 on elsewhere"),
        acquire_lease(output, "next"),
    ):
        pass
    put(output, "elsewhere", 1, "2026-11-01T00:00:00+00:00")
    with acquire_lease(output, "next"):
        pass


def test_a_process_of_the_same_number_does_not_keep_an_old_lease_alive(output: Store) -> None:
    """As after a power loss, or in a container that was started again."""
    put(output, platform.node(), os.getpid(), lease._now())
    with (
        pytest.raises(
            OutputInUseError, match=r"lease\.json there says so, and counts for nothing 60 s after"
        ),
        acquire_lease(output, "next"),
    ):
        pass
    put(output, platform.node(), os.getpid(), "2026-11-01T00:00:00+00:00")
    with acquire_lease(output, "next"):
        pass


def test_a_run_that_lost_the_output_learns_to_which_run(tmp_path: Path, output: Store) -> None:
    with acquire_lease(output, "first") as hold:
        hold.require()
        put(output, "elsewhere", 7, lease._now())
        with pytest.raises(
            LeaseLostError,
            match=(
                r"first lost it to run other \(process 7 on elsewhere\), since 2026-11-01T.*goes on"
            ),
        ):
            hold.require()
        hold.renew()
        assert read_lease(output).run_id == "other"  # type: ignore[union-attr]
        (tmp_path / LEASE_PATH).unlink()
        with pytest.raises(LeaseLostError, match="to one that has ended"):
            hold.require()


def test_renewals_go_on_after_any_error(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, renewed = [ValueError("odd"), OSError("down")], threading.Event()

    def renew(_: LeaseHandle) -> None:
        if failures:
            raise failures.pop()
        renewed.set()

    monkeypatch.setattr(LeaseHandle, "renew", renew)
    with acquire_lease(output, "first"):
        assert renewed.wait(5)


def test_a_lease_that_is_renewed_by_a_wrong_clock_is_not_over(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder's clock is weeks behind, but it renews."""
    monkeypatch.setattr(
        lease, "RENEW_SECONDS", 2.0
    )  # it is watched for that long and a half: time enough on a busy machine
    done, begun = threading.Event(), threading.Event()

    def renew() -> None:
        for second in itertools.count():
            put(output, "elsewhere", 1, f"2026-11-01T00:{second // 60:02}:{second % 60:02}+00:00")
            begun.set()
            if done.wait(0.05):
                return

    thread = threading.Thread(target=renew)
    thread.start()
    assert begun.wait(30)
    try:
        with pytest.raises(OutputInUseError), acquire_lease(output, "next"):
            pass
    finally:
        done.set()
        thread.join()


def test_of_runs_that_start_at_once_exactly_one_gets_the_lease(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.3)
    together, inside, refused = threading.Barrier(4), [], []
    end = threading.Event()

    def begin(name: str) -> None:
        together.wait()
        try:
            with acquire_lease(output, name):
                inside.append(name)
                end.wait(5)
        except OutputInUseError:
            refused.append(name)
            if len(refused) == 3:
                end.set()

    threads = [threading.Thread(target=begin, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 3)
