"""The refiner stage on a few steps: it learns its head only, and resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.training import assert_equal, stop_at, weights
from wordmask.model.train.refiner import train as refiner
from wordmask.model.train.refiner.config import RefinerSettings
from wordmask.model.train.refiner.data import CoarseMasks
from wordmask.model.train.refiner.train import RefinerStage
from wordmask.model.train.sft import train as sft
from wordmask.model.train.sft.config import Phase, SftSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the supervised stage, after one step."""
    out = tmp_path_factory.mktemp("sft")
    phase = Phase(name="box", steps=1, images=1, queries=2, n_objects=(2, 4), learning_rate=1e-3)
    sft.train(out, SftSettings(phases=(phase,), workers=0, scenes="shipped"))
    return out


def test_the_refiner_learns_its_head_only_and_resumes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = RefinerSettings(
        scenes="shipped", steps=4, batch=3, drawn=1, pool_rows=2, checkpoint_every=1, workers=0
    )
    pool = [torch.zeros(2, *shape) for shape in ((120, 120, 3), (120, 120), (120, 120))]
    # An untrained model draws nothing that meets its target, so it would be asked for ever.
    monkeypatch.setattr(
        refiner, "rollout_pool", lambda *_: CoarseMasks(pool[0].to(torch.uint8), *pool[1:])
    )
    refiner.train(trained, tmp_path / "whole", small)
    heal = stop_at(2, monkeypatch, RefinerStage)
    with pytest.raises(KeyboardInterrupt):
        refiner.train(trained, tmp_path / "halves", small)
    heal()
    refiner.train(trained, tmp_path / "halves", small)
    assert_equal(weights(tmp_path / "whole", "head"), weights(tmp_path / "halves", "head"))
    before = {
        name.removeprefix("head."): value
        for name, value in weights(trained, "model").items()
        if name.startswith("head.")
    }
    assert any(
        not torch.equal(before[name], value)
        for name, value in weights(tmp_path / "whole", "head").items()
    )


def test_more_rollouts_in_a_batch_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drawn = 5: must be 0\.\.4"):
        RefinerSettings(batch=4, drawn=5)
