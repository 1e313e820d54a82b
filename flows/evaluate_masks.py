"""Score a published run against ground truth, and leave the result as an artifact."""

from __future__ import annotations

import dataclasses

from prefect import flow
from prefect.artifacts import create_table_artifact

from model.eval.referring import ReferringScores
from tasks.results import evaluate


@flow(name="evaluate-masks")
def evaluate_masks(output: str, truth: str) -> ReferringScores:
    """Join on row_id and measure mIoU, cIoU and boundary IoU."""
    scores = evaluate(output, truth)
    create_table_artifact(table=[dataclasses.asdict(scores)], key="wordmask-scores")
    return scores
