"""The supervised stage on a few steps: a run is a function of its seed, and resumes exactly."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.training import assert_equal, stop_at, weights
from wordmask.model.hub.registry import resolve_model
from wordmask.model.loading import load_model
from wordmask.model.train.export import export_model
from wordmask.model.train.processes import average_gradients
from wordmask.model.train.sft import train as sft
from wordmask.model.train.sft.batch import SceneBatch
from wordmask.model.train.sft.config import Phase, SftSettings
from wordmask.model.train.sft.train import SftStage
from wordmask.model.train.small_model import trained_model

STEPS = 2  # of each phase


def settings(names: tuple[str, ...] = ("vision", "box", "path"), **options: Any) -> SftSettings:
    small = {"steps": STEPS, "images": 1, "queries": 2, "n_objects": (2, 4), "learning_rate": 1e-3}
    phases = tuple(Phase(name=name, **small) for name in names)
    return SftSettings(
        phases=phases, checkpoint_every=1, workers=0, dtype="float32", scenes="shipped", **options
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    sft.train(out, settings())
    return out


def test_a_stopped_run_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = stop_at(3, monkeypatch, SftStage)  # in the middle of the second phase
    with pytest.raises(KeyboardInterrupt):
        sft.train(tmp_path, settings())
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    heal()
    assert sft.train(tmp_path, settings()).step == 3 * STEPS
    for part in ("model", "weights", "auxiliary"):
        assert_equal(weights(trained, part), weights(tmp_path, part))


def test_a_run_gives_the_running_mean_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.text.wte"
    seen: list[torch.Tensor] = []
    real = SftStage.train_step

    def watched(stage: SftStage, batch: SceneBatch) -> dict[str, float]:
        if not seen:
            seen.append(stage.model.state_dict()[name].clone())
        metrics = real(stage, batch)
        seen.append(stage.model.state_dict()[name].clone())
        return metrics

    monkeypatch.setattr(SftStage, "train_step", watched)
    sft.train(tmp_path, settings(("box",), average=0.15))
    first, second, third = seen
    # In the first step it keeps less than the settings say: 1 of 10.
    mean = 0.15 * (0.1 * first + 0.9 * second) + 0.85 * third
    torch.testing.assert_close(weights(tmp_path, "model")[name], mean)
    assert torch.equal(weights(tmp_path, "weights")[name], third)
    assert torch.equal(
        trained_model(tmp_path).model.state_dict()[name], weights(tmp_path, "model")[name]
    )


def train_together(process: int, folder: Path) -> None:
    """One of two processes that do."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=process, world_size=2
    )
    both, one = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 3))
    both.grad = torch.tensor([1.0, 3.0]) * (process + 1)
    # Without a gradient, as an expert that no token of the process was routed to.
    one.grad = torch.ones(1, 3) if process else None
    average_gradients([both, one])
    assert torch.equal(both.grad, torch.tensor([1.5, 4.5]))
    assert torch.equal(one.grad, torch.full((1, 3), 0.5))
    state = sft.train(folder / "out", settings(("box",)))
    torch.save(state.model.state_dict(), folder / f"{process}.pt")


def test_processes_that_train_together_share_weights_and_not_scenes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_together, (tmp_path,), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2)
    )
    assert_equal(first, second)
    assert_equal(first, weights(tmp_path / "out", "weights"))
    sft.train(tmp_path / "alone", settings(("box",)))
    assert not torch.equal(
        first["model.text.wte"], weights(tmp_path / "alone", "weights")["model.text.wte"]
    )


def test_another_seed_is_another_run(trained: Path, tmp_path: Path) -> None:
    sft.train(tmp_path, settings(seed=1))
    name = "model.text.wte"
    assert not torch.equal(weights(trained, "model")[name], weights(tmp_path, "model")[name])


def test_a_frozen_encoder_keeps_its_weights_and_the_decoder_learns(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export_model(trained, None, folder)
    sft.train(tmp_path / "run", settings(("box", "path"), freeze_vision=True), init=str(folder))
    before = load_model(resolve_model(str(folder))).state_dict()
    after = weights(tmp_path / "run", "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("model.vision") for name in changed)
    assert any(name.startswith("model.text") for name in changed)
    with pytest.raises(ValueError, match="phase vision nothing to learn"):
        settings(freeze_vision=True)


def test_losses_are_logged_by_name_and_settings_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SftStage, "log_every", 2)
    phase = Phase(name="vision", steps=2, images=1, queries=1, n_objects=(1, 2), learning_rate=1e-3)
    fast = SftSettings(phases=(phase,), workers=0, scenes="shipped")
    sft.train(tmp_path, fast)
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert (row["phase"], row["step"]) == ("vision", "2")
    measured = {name for name, value in row.items() if value != "nan"}
    assert measured - {"phase", "step"} == {"seconds", "patch", "rank", "patch_box"}
    assert all(float(row[name]) > 0 for name in ("seconds", "patch", "rank", "patch_box"))
    kept = json.loads((trained / "settings.json").read_text())
    assert SftSettings.model_validate(kept) == settings()


def test_steps_on_the_command_line_are_those_of_the_three_phases() -> None:
    planned = SftSettings(steps=(0, 4, 9)).planned_phases()
    assert [(phase.name, phase.steps) for phase in planned] == [
        ("vision", 0),
        ("box", 4),
        ("path", 9),
    ]
    assert SftSettings(steps=(0, 0, 9), model="demo").planned_phases()[-1].steps == 9
    with pytest.raises(ValueError, match="learns by phase path alone"):
        SftSettings(model="demo")
