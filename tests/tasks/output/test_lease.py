"""One run at a time on an output, whoever dies, sleeps or is slow."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from wordmask.tasks.output import claims, lease
from wordmask.tasks.output.catalog import OLD_LEASE_PATH, lease_path
from wordmask.tasks.output.claims import Lease
from wordmask.tasks.output.lease import (
    LeaseHandle,
    LeaseLostError,
    OutputInUseError,
    acquire_lease,
    read_lease,
)
from wordmask.tasks.output.process import this_process
from wordmask.tasks.storage import Store

ELSEWHERE = {
    "token": "t",
    "run_id": "other",
    "fence": 7,
    "host": "elsewhere",
    "pid": 1,
    "since": "2026-11-01T00:00:00+00:00",
    "renewed": "2026-11-01T00:00:00+00:00",
}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "CONTEND_SECONDS", 0.02)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


@pytest.fixture(params=["exclusive", "plain"])
def store(request: pytest.FixtureRequest, output: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An output whose store heeds conditions, and one whose does not."""
    if request.param == "plain":
        monkeypatch.setattr(lease, "creates_exclusively", lambda _: False)
    return output


def stale_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", seconds)


def put(output: Store, path: str = lease_path(7), **fields: Any) -> None:
    record = Lease(**{**ELSEWHERE, **fields})
    output.write_bytes(path, record.model_dump_json().encode())


def own_process() -> dict[str, Any]:
    own = this_process()
    fields = own._asdict()
    fields["process_start"] = fields.pop("started")
    return fields


@contextmanager
def renewing(renew: Callable[[int], None]) -> Generator[None]:
    """Renew a lease all the time."""
    done, begun = threading.Event(), threading.Event()

    def renew_until_done() -> None:
        renewals = 0
        while not done.wait(0.02):
            renewals += 1
            renew(renewals)
            begun.set()

    thread = threading.Thread(target=renew_until_done)
    thread.start()
    try:
        assert begun.wait(30)
        yield
    finally:
        done.set()
        thread.join()


def require_in_use(output: Store, words: str = "at work on it") -> None:
    with pytest.raises(OutputInUseError, match=words), acquire_lease(output, "next"):
        pass


def require_free(output: Store) -> None:
    with acquire_lease(output, "next") as handle:
        handle.require()


def test_a_second_run_fails_and_names_the_first_and_its_start(store: Store) -> None:
    with acquire_lease(store, "first"):
        require_in_use(store, rf"run first \(process {os.getpid()} on .*since 20.*--wait")
    assert read_lease(store) is None
    with acquire_lease(store, "third"):
        assert read_lease(store).run_id == "third"  # type: ignore[union-attr]


def test_a_second_run_waits_no_longer_than_its_budget(store: Store) -> None:
    with acquire_lease(store, "first"):
        spent = pytest.raises(OutputInUseError, match=r"run first .* when the budget was spent")
        with spent, acquire_lease(store, "second", wait=True, patience=0.0):
            pass


def test_a_second_run_waits_if_asked_to(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with acquire_lease(store, "second", wait=True):
            order.append("second begins")

    with acquire_lease(store, "first"):
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
    monkeypatch.setattr(claims, "now", lambda: next(ticks))
    with acquire_lease(output, "first"):
        before = read_lease(output)
        time.sleep(0.4)
        after = read_lease(output)
    assert before is not None
    assert after is not None
    assert (after.renewed, after.renewals) > (before.renewed, before.renewals)
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
        require_in_use(output, "run killed")
        other.kill()
        other.wait()
    require_free(output)


def test_a_lease_whose_process_number_was_given_to_another_is_over(output: Store) -> None:
    now = claims.now()
    put(output, renewed=now, **own_process())
    require_in_use(output)
    put(output, renewed=now, **own_process() | {"process_start": "1"})
    require_free(output)


@pytest.mark.parametrize(
    "fields",
    [
        {"pid_namespace": "4026532999"},
        {"boot_id": "00000000-0000-0000-0000-000000000000"},
        {"pid_namespace": "", "boot_id": "", "process_start": ""},
    ],
)
def test_a_holder_of_the_same_host_name_whose_number_is_no_process_here_is_not_taken_for_dead(
    fields: dict[str, str], output: Store
) -> None:
    """As in two containers of one host name, which number their processes by themselves."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    container = own_process() | {"pid": ended.pid} | fields
    with renewing(lambda renewals: put(output, renewals=renewals, **container)):
        require_in_use(output, f"process {ended.pid}")


def test_a_lease_of_an_older_version_is_heeded(output: Store, monkeypatch: Any) -> None:
    """Its record has another place and no number."""

    def renew(second: int) -> None:
        renewed = f"2026-11-01T00:{second // 60:02}:{second % 60:02}+00:00"
        put(output, OLD_LEASE_PATH, fence=0, renewed=renewed)

    put(output, path=lease_path(3), fence=3, token="released", state="released")
    with renewing(renew):
        require_in_use(output, r"lease\.json there says so, and counts for nothing 60 s after")
    stale_after(0.2, monkeypatch)
    require_free(output)
    assert not Path(output.root, OLD_LEASE_PATH).exists()


@pytest.mark.parametrize("year", [2020, 2026, 2090])
def test_a_lease_is_over_when_it_stays_as_it_is_whatever_its_clock_says(
    year: int, output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_after(0.5, monkeypatch)
    put(output, renewed=f"{year}-11-01T00:00:00+00:00")
    began = time.monotonic()
    require_free(output)
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("year", [2020, 2090])
def test_a_lease_that_is_renewed_by_a_wrong_clock_is_not_over(year: int, output: Store) -> None:
    renewed = f"{year}-11-01T00:00:00+00:00"
    with renewing(lambda renewals: put(output, renewals=renewals, renewed=renewed)):
        require_in_use(output, "process 1 on elsewhere")


def test_a_run_that_lost_the_output_learns_to_which_run(output: Store) -> None:
    with acquire_lease(output, "first") as handle:
        handle.require()
        put(output)
        words = r"first lost it to run other \(process 1 on elsewhere\), since 2026-11-01T.*goes on"
        with pytest.raises(LeaseLostError, match=words):
            handle.require()
        handle.renew()
        assert read_lease(output).run_id == "other"  # type: ignore[union-attr]


def test_a_run_whose_lease_was_removed_lost_it(output: Store) -> None:
    with acquire_lease(output, "first") as handle:
        output.remove(lease_path(handle.fence))
        with pytest.raises(LeaseLostError, match=r"or leases/0000000001\.json was removed"):
            handle.require()


def test_a_lease_that_cannot_be_renewed_for_long_counts_as_lost(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_after(0.5, monkeypatch)
    with acquire_lease(output, "first") as handle:
        handle.check()

        def fail(*_: Any) -> None:
            raise ConnectionError("down")

        with monkeypatch.context() as down:
            down.setattr(claims, "write_claim", fail)
            time.sleep(0.7)
            with pytest.raises(LeaseLostError, match="as it could not renew it"):
                handle.check()


def test_renewals_go_on_after_any_error(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, renewed = [ValueError("odd"), OSError("down")], threading.Event()

    def renew(_: LeaseHandle) -> None:
        if failures:
            raise failures.pop()
        renewed.set()

    monkeypatch.setattr(LeaseHandle, "renew", renew)
    with acquire_lease(output, "first"):
        assert renewed.wait(5)


def begin_together(output: Store, names: list[str]) -> tuple[list[str], list[str]]:
    """Return which runs were in and which refused, of some that begin at once and stay in."""
    together = threading.Barrier(len(names))
    inside: list[str] = []
    refused: list[str] = []
    all_ended = threading.Event()

    def begin(name: str) -> None:
        together.wait()
        try:
            with acquire_lease(output, name) as handle:
                inside.append(name)
                all_ended.wait(10)
                handle.require()
        except OutputInUseError:
            refused.append(name)
        if len(refused) == len(names) - 1:
            all_ended.set()

    threads = [threading.Thread(target=begin, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return inside, refused


def test_of_runs_that_start_at_once_exactly_one_gets_the_lease(store: Store) -> None:
    inside, refused = begin_together(store, ["a", "b", "c", "d"])
    assert (len(inside), len(refused)) == (1, 3)


def test_a_slow_write_does_not_let_two_runs_in(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write of the slow run takes 1.2 s, as where a request is tried again."""
    fast_put, delayed = Store._put, threading.Lock()

    def put_slowly(self: Store, path: str, data: bytes) -> None:
        if b'"slow"' in data and delayed.acquire(blocking=False):
            time.sleep(1.2)
        fast_put(self, path, data)

    monkeypatch.setattr(Store, "_put", put_slowly)
    inside, refused = begin_together(store, ["slow", "fast"])
    assert (len(inside), len(refused)) == (1, 1)


def test_runs_at_a_slow_store_never_meet_and_none_is_told_that_it_lost_the_output(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the store and each write takes some time before and after it happens."""
    monkeypatch.setattr(lease, "CONTEND_SECONDS", 0.002)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.002)
    chance = random.Random(0)

    def slowed(step: Callable[..., Any]) -> Callable[..., Any]:
        def slow_step(*args: Any) -> Any:
            time.sleep(chance.choice((0, 0, 0.002, 0.02)))
            result = step(*args)
            time.sleep(chance.choice((0, 0, 0.002, 0.02)))
            return result

        return slow_step

    for name in ("_put", "names", "read_bytes"):
        monkeypatch.setattr(Store, name, slowed(getattr(Store, name)))
    inside = threading.Lock()
    fences: list[int] = []

    def work() -> None:
        for _ in range(3):
            with acquire_lease(store, "run", wait=True) as handle:
                if inside.acquire(blocking=False):
                    handle.require()
                    fences.append(handle.fence)
                    inside.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fences) == len(set(fences)) == 12
    assert fences == sorted(fences)


def test_a_run_that_looked_before_another_took_the_output_does_not_disturb_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = lease._claim
    with ExitStack() as first:

        def sleep_then_claim(*args: Any) -> Any:
            monkeypatch.setattr(lease, "_claim", attempt)
            handle = first.enter_context(acquire_lease(store, "first"))
            claim = attempt(*args)
            handle.require()
            return claim

        monkeypatch.setattr(lease, "_claim", sleep_then_claim)
        require_in_use(store, "run first")


def test_a_claim_that_slept_until_another_run_took_over_is_withdrawn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps between its look at the others and the write that would make it the lease."""
    hold, others = lease._hold, []

    def sleep_then_hold(output: Store, claim: claims.Claim, run_id: str | None) -> Any:
        monkeypatch.setattr(lease, "_hold", hold)
        put(output, path=lease_path(claim.lease.fence + 1), fence=claim.lease.fence + 1)
        others.append(claim)
        return hold(output, claim, run_id)

    monkeypatch.setattr(lease, "_hold", sleep_then_hold)
    stale_after(0.2, monkeypatch)
    with acquire_lease(store, "next") as handle:
        assert handle.fence > others[0].lease.fence + 1, "it began anew, after the other"


def test_every_lease_has_a_greater_number_than_all_before(store: Store) -> None:
    fences = []
    for _ in range(3):
        with acquire_lease(store) as handle:
            fences.append(handle.fence)
    assert fences == [1, 2, 3]
    assert len(store.names("leases", ".json")) == 1, "only the last one is kept"


def test_the_number_does_not_fall_when_leases_are_removed(output: Store) -> None:
    output.write_bytes(f"receipts/{'0' * 32}-41.json", b"{}")
    output.write_bytes(f"receipts/{'0' * 32}.json", b"{}")
    with acquire_lease(output) as handle:
        assert handle.fence == 42
    output.remove(lease_path(42))
    output.write_bytes("runs/published.json", b'{"fence": 50}')
    with acquire_lease(output) as handle:
        assert handle.fence == 51
