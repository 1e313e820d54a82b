"""Rejects of the model are tried again by themselves where code or device are others than then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import fakes
from tests.support.fakes import REVISION
from tests.support.runs import carry_out, plan_of, settings_for
from tests.support.tables import png, read_rows
from wordmask.schemas.runs import ShardHints
from wordmask.schemas.settings import RunSettings
from wordmask.tasks import environment
from wordmask.tasks.context import ShardContext
from wordmask.tasks.environment import environment_of
from wordmask.tasks.infer.canary import QUERY
from wordmask.tasks.output.published import open_newest_run
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import Store

QUERIES = ["a", "explode", "b", "", "c", "d"]
Change = Callable[..., None]


@pytest.fixture
def published(tmp_path: Path) -> RunSettings:
    """The settings of a published run of three shards, in one of which the model failed."""
    rows = [{"image": png(1), "query": query} for query in QUERIES]
    settings = settings_for(tmp_path, rows, shard_rows=2)
    carry_out(plan_of(settings, REVISION), settings)
    return settings


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Change:
    """A function that gives packages other versions, or the device another name."""

    def change_to(**values: str) -> None:
        before = environment._versions()
        device = values.pop("device", environment._device_name("cpu"))
        monkeypatch.setattr(environment, "_versions", lambda: before | values)
        monkeypatch.setattr(environment, "_device_name", lambda _: device)

    return change_to


def run(settings: RunSettings) -> set[str]:
    """Run again, and return what the model was asked about besides the canary."""
    asked, _ = carry_out(plan_of(settings, REVISION), settings)
    return {*asked} - {QUERY.object}


@pytest.mark.parametrize("changed", [{"wordmask": "9.9"}, {"torch": "9.9"}, {"device": "H900"}])
def test_a_row_that_the_model_failed_on_is_tried_again_once_after_a_change(
    changed: dict[str, str], published: RunSettings, change: Change
) -> None:
    assert plan_of(published, REVISION).pending == (), "nothing changed"
    change(**changed)
    assert run(published) == {"explode"}, "rows beside it are copied, other rejects stay"
    assert plan_of(published, REVISION).pending == (), "it failed here too"
    assert len(read_rows(published.output, "masks")) == 4


def test_a_row_that_the_model_answers_by_now_has_a_mask(
    published: RunSettings, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fakes._answer
    monkeypatch.setattr(
        fakes, "_answer", lambda image, words: answer(image, words.replace("explode", "thing"))
    )
    change(wordmask="9.9")
    run(published)
    assert len(read_rows(published.output, "masks")) == 5
    assert [each["code"] for each in read_rows(published.output, "rejects")] == ["empty_query"]


def test_of_a_standing_cluster_the_planner_knows_the_version_of_this_package_alone(
    published: RunSettings, change: Change
) -> None:
    standing = published.model_copy(update={"scheduler": "tcp://somewhere:8786"})
    change(device="H900", torch="9.9")
    assert plan_of(standing, REVISION).pending == ()
    change(wordmask="9.9")
    assert len(plan_of(standing, REVISION).pending) == 1


def test_a_row_that_killed_its_worker_is_tried_again_too(tmp_path: Path, change: Change) -> None:
    settings = settings_for(tmp_path, [{"image": png(1), "query": "a"}])
    plan = plan_of(settings, REVISION)
    (shard,) = plan.shards
    plan = plan.model_copy(update={"hints": {shard.shard_id: ShardHints(poison_rows=(0,))}})
    assert carry_out(plan, settings)[0] == []
    assert run(settings) == set()
    change(numba="9.9")
    assert run(settings) == {"a"}


def test_what_a_stopped_run_tried_again_is_taken_up(published: RunSettings, change: Change) -> None:
    change(torch="9.9")
    plan = plan_of(published, REVISION)
    (shard,) = plan.pending
    fence = open_newest_run(Store.open(published.output)).head.fence + 1
    context = ShardContext(fakes.FakeSegmenter())
    process_shard(shard, published, context, plan.hints[shard.shard_id], fence)
    assert plan_of(published, REVISION).pending == ()
    change(torch="9.10")
    assert plan_of(published, REVISION).pending == (shard,)


def test_a_published_record_says_in_which_environment_a_shard_was_done(
    published: RunSettings,
) -> None:
    records = [*open_newest_run(Store.open(published.output)).records()]
    assert [record.environment for record in records] == [environment_of("cpu")] * 3
    assert {"wordmask", "torch", "numpy", "pillow", "device"} <= records[0].environment.keys()
