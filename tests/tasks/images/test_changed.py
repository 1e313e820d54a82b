"""Images that were replaced behind their URIs are found, and nothing else is computed anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import carry_out, plan_of, settings_for
from tests.support.tables import png, read_rows
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import ImageCheck
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.images import changed
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.shard import process_shard
from wordmask.tasks.storage import sha256

NAMES = ("a.png", "b.png", "a.png", "gone.png")


@pytest.fixture
def nightly(tmp_path: Path) -> RunSettings:
    """A published run of four rows in two shards; a.png is in both, gone.png is not there."""
    table = [
        {"row_id": f"r{number}", "image": name, "query": f"thing {number}"}
        for number, name in enumerate(NAMES)
    ]
    for seed, name in enumerate(("a.png", "b.png")):
        put(tmp_path / name, seed)
    settings = settings_for(tmp_path, table, shard_rows=2)
    carry_out(plan_of(settings, REVISION), settings)
    return settings.model_copy(update={"check_images": True})


def put(path: Path, seed: int) -> None:
    path.write_bytes(png(seed))
    os.utime(path, (seed, seed))


def image_ids(settings: RunSettings) -> dict[str, str]:
    return {row["row_id"]: row["image_id"] for row in read_rows(settings.output, "masks")}


def test_only_rows_of_an_overwritten_image_are_computed(
    nightly: RunSettings, tmp_path: Path
) -> None:
    put(tmp_path / "b.png", 5)
    assert plan_of(nightly.model_copy(update={"check_images": False}), REVISION).pending == ()
    plan = plan_of(nightly, REVISION)
    assert plan.image_check == ImageCheck(requests=3, unanswered=0, shards=1)
    asked, receipts = carry_out(plan, nightly)
    assert asked == ["thing 1"]
    assert [receipt.copied for receipt in receipts] == [1]
    assert image_ids(nightly) == {
        row_id: sha256(png(seed))[:32] for row_id, seed in (("r0", 0), ("r1", 5), ("r2", 0))
    }
    assert plan_of(nightly, REVISION).pending == ()


def test_an_image_that_vanished_is_rejected_and_one_that_came_is_answered(
    nightly: RunSettings, tmp_path: Path
) -> None:
    (tmp_path / "b.png").rename(tmp_path / "gone.png")
    asked, _ = carry_out(plan_of(nightly, REVISION), nightly)
    assert asked == ["thing 3"]
    rejects = {row["row_id"]: row["code"] for row in read_rows(nightly.output, "rejects")}
    assert rejects == {"r1": "image_not_found"}


def test_a_store_is_asked_once_about_each_image_and_sends_none(
    nightly: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(full: str, *rest: Any) -> str | None:
        asked.append(Path(full).name)
        raise ImageError(RejectCode.IMAGE_NOT_FOUND, "")

    monkeypatch.setattr(changed, "image_fingerprint", ask)
    assert len(plan_of(nightly, REVISION).pending) == 2
    assert sorted(asked) == ["a.png", "b.png", "gone.png"]


def unreachable(*_: Any) -> str | None:
    raise ImageError(RejectCode.IMAGE_UNREACHABLE, "")


def forbidden(*_: Any) -> str | None:
    raise ImageError(RejectCode.IMAGE_FORBIDDEN, "")


def broken(*_: Any) -> str | None:
    raise ConnectionError


def silent(*_: Any) -> str | None:
    return None


@pytest.mark.parametrize("answer", [unreachable, forbidden, broken, silent])
def test_an_image_whose_store_does_not_say_keeps_its_masks(
    answer: Callable[..., str | None], nightly: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed, "image_fingerprint", answer)
    plan = plan_of(nightly, REVISION)
    assert plan.pending == ()
    assert plan.counts()["images_unanswered"] == plan.counts()["images_checked"] == 3


def test_what_a_stopped_run_computed_for_the_new_images_is_not_computed_again(
    nightly: RunSettings, tmp_path: Path
) -> None:
    put(tmp_path / "a.png", 5)
    first, second = plan_of(nightly, REVISION).pending
    process_shard(first, nightly, ShardContext(FakeSegmenter()), fence=1)
    plan = plan_of(nightly, REVISION)
    assert plan.pending == (second,)
    carry_out(plan, nightly)
    assert image_ids(nightly)["r0"] == image_ids(nightly)["r2"] == sha256(png(5))[:32]


def test_a_recomputation_asks_the_model_about_every_row(nightly: RunSettings) -> None:
    settings = nightly.model_copy(update={"recompute": True})
    asked, receipts = carry_out(plan_of(settings, REVISION), settings)
    assert asked == ["thing 0", "thing 1", "thing 2"]
    assert [receipt.copied for receipt in receipts] == [0, 0]


def test_a_recomputation_takes_no_budget() -> None:
    with pytest.raises(ValueError, match=r"takes no budget.*give a new output"):
        RunSettings(input="in", output="out", recompute=True, budget_seconds=60)
