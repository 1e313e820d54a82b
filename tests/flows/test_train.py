"""The training flow, with a step of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.artifacts import Artifact

from wordmask.flows import train as train_module
from wordmask.flows.train import MEASURES, train, train_sft
from wordmask.model.segmenter import Segmenter
from wordmask.model.train.sft.train import SftStage
from wordmask.schemas.training import TrainSettings

pytestmark = pytest.mark.usefixtures("prefect_api")


# The task is called outside a flow at the end, to see that it does nothing.
@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow:FutureWarning")
@pytest.mark.timeout(600)  # a run of the pipeline is in it
def test_a_model_is_trained_tested_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "TEST_SPLITS", ("test",))
    monkeypatch.setattr(train_module, "TESTED_MODELS", (("rl", "model", 1),))
    settings = TrainSettings(
        out=tmp_path, scenes="shipped", init="demo", share=1e-6, test_rows=4, workers=0
    )
    table = train(settings)
    assert [(row["stage"], row["iterations"], row["split"], row["rows"]) for row in table] == [
        ("rl", 1, "test", 4)
    ]
    log = Artifact.get("training-rl-log")
    assert log is not None
    (step,) = json.loads(str(log.data))
    assert step["step"] == 1
    assert 0 <= step["reward"] <= 1
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["steps"] == {"rl": 1, "refiner": 1}
    (scores,) = card["results"].values()
    assert {"rows", "miou"} <= scores.keys() <= set(MEASURES)
    assert (
        Segmenter.from_pretrained(str(tmp_path / "model"), device="cpu").config.text.vocab_size
        == 2048
    )

    def again(*_: object) -> None:
        raise AssertionError("what is done is not done again")

    monkeypatch.setattr(SftStage, "train_step", again)
    train_sft(settings)
