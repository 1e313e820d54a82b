"""Publication as a game: processes that plan, compute, publish, retry and remove, and faults.

A `World` is an output and an input in memory. A `Move` is what one process does there, and what
befalls it: it dies before a change, dies while a change is under way that arrives later, or stands
still for so long before a change that others take it for dead, do their work, and then it goes on.
After each change a reader looks at the output.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.stepped_store import Change, Files, SteppedFileSystem
from tests.support.tables import IMAGE, png
from wordmask.flows import segment as flow
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Plan, Shard, ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks import objects
from wordmask.tasks import plan as plans
from wordmask.tasks.context import ShardContext
from wordmask.tasks.output import (
    catalog,
    done,
    garbage,
    lease,
    manifests,
    process,
    published,
    verify,
)
from wordmask.tasks.output.lease import LeaseLostError, OutputInUseError
from wordmask.tasks.output.published import open_newest_run_if_any
from wordmask.tasks.plan import make_plan
from wordmask.tasks.shard import NO_HINTS, process_shard
from wordmask.tasks.storage import Store, fingerprint
from wordmask.tasks.table import footers
from wordmask.tasks.table.read import InputChangedError

INPUT, OUTPUT = "stepped://in", "stepped://out"
SETTINGS = RunSettings(input=INPUT, output=OUTPUT, shard_rows=1)
VERSIONS = 4  # of the input, whose content goes to and fro
FLAKY = "flaky"  # a row that is answered at some times and rejected at others
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
A_YEAR = timedelta(days=365)

Deed = Literal["night", "night ahead", "retry", "gc", "change input", "change weather", "wait"]
Fate = Literal["lives", "dies", "dies in flight", "pauses"]


@dataclass(frozen=True)
class Move:
    """What a process does, and what befalls it at a change. `others`: what is done in its pause."""

    deed: Deed
    fate: Fate = "lives"
    at: int = 0
    others: tuple[Deed, ...] = ()


@dataclass
class State:
    """All that a move starts from."""

    files: Files
    version: int = 0  # of the input
    stormy: bool = False  # then the flaky row is rejected
    in_flight: tuple[Change, ...] = ()  # of dead processes; it arrives when the next move is over
    read: int = -1  # the newest version of the input that a reader has seen
    waited: timedelta = timedelta()

    def copy(self) -> State:
        return replace(self, files=self.files.copy())


class ProcessDied(BaseException):
    """The process ends here. Nothing catches it."""


@dataclass
class Actor:
    """A process at work: its number, its changes so far, and what befalls it."""

    pid: int
    move: Move
    is_first: bool  # nothing was published when it began
    changes: int = 0
    is_dead: bool = False
    paused: threading.Event = field(default_factory=threading.Event)
    resumed: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(frozen=True)
class ReadRun:
    """What a reader finds in a run: its rows, and the files that they were read from."""

    rows: list[str]
    paths: list[str]


class Library:
    """Runs that were read before. They are named by their content, so that they stay the same."""

    def __init__(self) -> None:
        self._runs: dict[str, ReadRun] = {}

    def run_of(self, index: str, output: Store) -> ReadRun:
        """Return the newest run of an output, which has this index."""
        if index not in self._runs:
            run = open_newest_run_if_any(output)
            assert run is not None
            parts = [part for parts in run.parts() for part in parts]
            rows: list[str] = []
            for part in parts:
                with output.parquet(part.path) as file:
                    rows += file.read(columns=["query"])["query"].to_pylist()
            records = [path for path in run.record_paths() if not path.startswith("runs/")]
            self._runs[index] = ReadRun(sorted(rows), [*records, *(part.path for part in parts)])
        return self._runs[index]

    def paths_of(self, index: str) -> list[str]:
        """Return the files of the run that has this index, as far as it was ever the newest."""
        if index not in self._runs:
            return [index]
        return self._runs[index].paths


class World:
    """The state of the game, and the processes in it."""

    def __init__(self, state: State, library: Library) -> None:
        self.state = state
        self.actors: list[Actor] = []
        self.active: Actor | None = None
        self.on_change = self.change
        self.fs = SteppedFileSystem(lambda: self.state.files, lambda each: self.on_change(each))
        self.library = library

    def open(self, uri: str) -> Store:
        return Store(self.fs, uri.removeprefix("stepped://").rstrip("/"), uri)

    def now(self) -> datetime:
        """The clock of the active process."""
        at = EPOCH + self.state.waited + timedelta(milliseconds=self.state.files.changes)
        if self.active is not None and self.active.move.deed == "night ahead":
            return at + A_YEAR
        return at

    def change(self, change: Change) -> None:
        """Let the active process change a file, or let befall it what is to befall it."""
        actor = self.active
        assert actor is not None
        if actor.is_dead:
            raise ProcessDied
        number = actor.changes
        actor.changes += 1
        if number == actor.move.at and actor.move.fate != "lives":
            self._befall(actor, change)
        self._apply(change)

    def _befall(self, actor: Actor, change: Change) -> None:
        if actor.move.fate == "pauses":
            actor.paused.set()
            actor.resumed.wait()
            return
        if actor.move.fate == "dies in flight":
            self.state.in_flight += (change,)
        actor.is_dead = True
        raise ProcessDied

    def _apply(self, change: Change) -> None:
        is_new = change.path not in self.state.files.by_path
        self.state.files.apply(change)
        # What is added beside a run changes nothing for its readers.
        if "/runs/" in change.path or not is_new:
            self.look()

    def play(self, move: Move) -> Actor:
        """Do a move to its end, and return its actor. What is in flight arrives after it."""
        arriving, self.state.in_flight = self.state.in_flight, ()
        actor = self._start(move)
        for other in move.others:
            self._finish(self._start(Move(other)))
        self._resume(actor)
        for change in arriving:
            with suppress(FileExistsError):
                self._apply(change)
        return actor

    def _start(self, move: Move) -> Actor:
        """Start a actor, and wait until it ended or paused."""
        actor = Actor(len(self.actors) + 1, move, is_first=self.state.read < 0)
        self.actors.append(actor)
        self.active = actor
        if move.fate == "pauses":
            threading.Thread(target=self._work, args=(actor,), daemon=True).start()
            actor.paused.wait()
        else:
            self._work(actor)
        return actor

    def _resume(self, actor: Actor) -> None:
        if actor.move.fate == "pauses":
            self.active = actor
            actor.paused.clear()
            actor.resumed.set()
            actor.paused.wait()
        self._finish(actor)

    def _finish(self, actor: Actor) -> None:
        if actor.error is not None:
            raise actor.error

    def _work(self, actor: Actor) -> None:
        try:
            DEEDS[actor.move.deed](self)
        except ProcessDied:
            pass
        except (LeaseLostError, OutputInUseError, InputChangedError):
            pass  # it ends without publishing
        except FileNotFoundError as error:
            # Nothing was published, so there is nothing to retry or remove.
            if not actor.is_first:
                actor.error = error
        except BaseException as error:
            actor.error = error
        finally:
            actor.is_dead = True
            actor.paused.set()

    def has_ended(self, known: process.Process) -> bool:
        """Whether a process may be taken for dead: it is, or stands still."""
        return known.pid != self._active_pid()

    def this_process(self) -> process.Process:
        return process.Process("host", "boot", "namespace", self._active_pid(), "start")

    def _active_pid(self) -> int:
        return 0 if self.active is None else self.active.pid

    def look(self) -> None:
        """Read the output as a reader does, and check what is found.

        Raises:
            AssertionError: it is not one whole run over one version of the input, each row once, or
                an older one than was found before.
        """
        version = self.published_version()
        assert version >= self.state.read, f"version {version} after {self.state.read}"
        self.state.read = version

    def published_version(self) -> int:
        """Return the latest version of the input that the newest run is of, -1: there is no run."""
        heads = [name for name in self.state.files.by_path if name.startswith("out/runs/")]
        if not heads:
            return -1
        head = json.loads(self.state.files.by_path[max(heads)][0])
        run = self.library.run_of(head["index"], self.open(OUTPUT))
        for path in run.paths:
            assert f"out/{path}" in self.state.files.by_path, f"readers miss {path}"
        for version in reversed(range(self.state.version + 1)):
            if run.rows == sorted(rows_of_input(version)):
                return version
        raise AssertionError(f"readers see {run.rows}")

    def key(self) -> str:
        """Return a hash of the state but for times, numbers of leases and random digits."""
        state = self.state
        files = {name: file[0] for name, file in sorted(state.files.by_path.items())}
        runs = [
            self.library.paths_of(json.loads(data)["index"])
            for name, data in files.items()
            if name.startswith("out/runs/")
        ]
        leases = [json.loads(data)["state"] for name, data in files.items() if "/leases/" in name]
        others = [name for name in files if re.match("out/(masks|rejects|receipts)/", name)]
        records = sum(bool(re.match("out/(manifests|indexes)/", name)) for name in files)
        in_flight = [(change.path, change.data is None) for change in state.in_flight]
        told = [others, runs, leases, records, self._named(), in_flight]
        rest = [state.version, state.stormy, state.read]
        return hashlib.sha256(f"{_with_ranks(str(told))} {rest}".encode()).hexdigest()

    def _named(self) -> list[Any]:
        """Return what is named to be removed, and whether it was named long ago."""
        data, _ = self.state.files.by_path.get("out/garbage/named.parquet", (b"", 0))
        if not data:
            return []
        table = pq.read_table(pa.BufferReader(data))
        long_ago = (self.now() - garbage.NAMED_FOR).isoformat()
        return [(row["path"], row["named_at"] < long_ago) for row in table.to_pylist()]


def _with_ranks(text: str) -> str:
    """Return a text with paths in which the ranks of leases stand for their numbers."""
    pattern = r"(?<=[-/])(\d+)(?=-[0-9a-f]+\.parquet|\.json)"
    numbers = sorted({int(number) for number in re.findall(pattern, text)})
    numbered = re.sub(pattern, lambda found: str(numbers.index(int(found[1]))), text)
    # What a manifest's or an index's name hashes has numbers of leases in it.
    return re.sub(r"(manifests|indexes)/[^']+", r"\1", numbered)


def rows_of_input(version: int) -> list[str]:
    content = version % 2
    return [f"{content} {FLAKY}", "other file"]


def write_input(files: Files, version: int) -> None:
    flaky, other = rows_of_input(version)
    files.apply(Change("in/a.parquet", _table([flaky])))
    if version == 0:
        files.apply(Change("in/b.parquet", _table([other])))


def _table(queries: list[str]) -> bytes:
    images = pa.array([{"bytes": png(1), "path": None}] * len(queries), IMAGE)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "query": queries}), buffer)
    return buffer.getvalue()


def fresh_state() -> State:
    """Return the state before the first night."""
    files = Files()
    write_input(files, 0)
    return State(files)


class Weather(FakeSegmenter):
    """A model that fails on the flaky row when the weather is stormy."""

    def __init__(self, stormy: bool) -> None:
        super().__init__()
        self.stormy = stormy

    def stream(self, asked: Any, rows: int) -> Any:
        for image, queries in asked:
            for tag, query in queries:
                if self.stormy and query.object.endswith(FLAKY):
                    raise RuntimeError("the weather is bad")
                yield from super().stream([(image, [(tag, query)])], rows)


class Workers:
    """Workers that remember the files of each shard, as most histories have the same."""

    def __init__(self) -> None:
        self._files: dict[tuple[Any, ...], list[Change]] = {}

    def work_on(self, shard: Shard, hints: ShardHints, fence: int, world: World) -> None:
        """Write the files of a shard, which depend on all of the key and on nothing else.

        Raises:
            InputChangedError: as `process_shard` does.
        """
        store = world.open(shard.file)
        if fingerprint(store.fs.info(store.root)) != shard.fingerprint:
            raise InputChangedError(shard.label)
        key = (shard.shard_id, hints.model_dump_json(), fence, world.state.stormy)
        if key not in self._files:
            self._files[key] = self._record(shard, hints, fence, world)
        for change in self._files[key]:
            world.fs.pipe_file(change.path, change.data)

    def _record(self, shard: Shard, hints: ShardHints, fence: int, world: World) -> list[Change]:
        """Do a shard beside the game, and return what it writes."""
        written: list[Change] = []
        context = ShardContext(Weather(world.state.stormy))
        apply, world.on_change = world.on_change, written.append
        try:
            process_shard(shard, SETTINGS, context, hints, fence)
        finally:
            world.on_change = apply
        return written


class OneThread:
    """An executor that does all at once, in this thread: threads cost more than the work here."""

    def __init__(self, *_sizes: int) -> None:
        pass

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        return [function(*each) for each in zip(*items, strict=False)]


def _night(world: World) -> None:
    flow.segment.fn(SETTINGS)


def _retry(world: World) -> None:
    flow.retry.fn(OUTPUT, (RejectCode.MODEL_ERROR,))


def _gc(world: World) -> None:
    from wordmask.flows.cli.outputs import _collect

    _collect(OUTPUT, 1, delete=True)


def _change_input(world: World) -> None:
    if world.state.version + 1 < VERSIONS:
        world.state.version += 1
        write_input(world.state.files, world.state.version)


def _wait(world: World) -> None:
    world.state.waited += 2 * garbage.NAMED_FOR


def _change_weather(world: World) -> None:
    world.state.stormy = not world.state.stormy


DEEDS: dict[Deed, Callable[[World], None]] = {
    "night": _night,
    "night ahead": _night,
    "retry": _retry,
    "gc": _gc,
    "change input": _change_input,
    "change weather": _change_weather,
    "wait": _wait,
}


@contextmanager
def stage(patch: pytest.MonkeyPatch, *, exclusive: bool) -> Iterator[Callable[[State], World]]:
    """Put the product on a stage: a store in memory, no Prefect, no Dask, clocks of the game.

    Args:
        patch: undoes it at the end.
        exclusive: whether the store creates a file only where there is none.
    """
    worlds: list[World] = []
    library = Library()

    def enter(state: State) -> World:
        worlds[:] = [World(state, library)]
        return worlds[0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return worlds[0].now()

    workers = Workers()

    def dispatch(plan: Plan, _settings: RunSettings, *_rest: Any) -> flow.Dispatched:
        for shard in plan.pending:
            hints = plan.hints.get(shard.shard_id, NO_HINTS)
            workers.work_on(shard, hints, plan.fence, worlds[0])
        return flow.Dispatched(plan, 0)

    def plan_run(settings: RunSettings, output: Store) -> Plan:
        return make_plan(settings, REVISION, output)

    patch.setattr(Store, "open", lambda uri: worlds[0].open(uri))
    patch.setattr(Store, "check_writable", lambda self: None)
    patch.setattr(flow, "dispatch", dispatch)
    patch.setattr(flow, "plan_run", plan_run)
    patch.setattr(flow, "verify_run", flow.verify_run.fn)
    patch.setattr(flow, "publish_artifacts", lambda summary: None)
    patch.setattr(catalog, "datetime", Clock)
    patch.setattr(garbage, "datetime", Clock)
    patch.setattr(process, "has_ended", lambda known: worlds[0].has_ended(known))
    patch.setattr(process, "is_running", lambda known: False)
    patch.setattr(process, "this_process", lambda: worlds[0].this_process())
    patch.setattr(lease, "creates_exclusively", lambda store: exclusive)
    for module in (catalog, done, footers, manifests, objects, plans, published, verify):
        patch.setattr(module, "ThreadPoolExecutor", OneThread)
    patch.setattr(logging.getLogger("wordmask"), "disabled", True)
    yield enter
