"""Stage 1 of the paper: supervised path decoding.

How to run it, and where it departs from the paper: docs/training.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wordmask.model.decoding.tokenizer import PathTokenizer
from wordmask.model.hub.registry import TOKENIZER_FILE, resolve_model
from wordmask.model.loading import load_model, load_tokenizer
from wordmask.model.nn.moondream import MoondreamSegmentation
from wordmask.model.scenes.dataset import SceneDataset
from wordmask.model.train.loop import (
    OnProgress,
    Stage,
    WeightAverage,
    ignore_progress,
    resume,
    run_stage,
    update_weights,
    warmup_cosine,
)
from wordmask.model.train.lora import add_lora, load_trainable_state_dict, trainable_state_dict
from wordmask.model.train.processes import process_rank
from wordmask.model.train.sft.auxiliary import AuxiliaryHeads
from wordmask.model.train.sft.batch import SceneBatch
from wordmask.model.train.sft.config import SftSettings
from wordmask.model.train.sft.data import SceneBatches, batch_stream
from wordmask.model.train.sft.losses import WEIGHTS, adapter_losses, scene_losses
from wordmask.model.train.sft.soft_targets import SoftTargets
from wordmask.model.train.small_model import small_model, small_tokenizer, warm_start

ADAM_BETAS = (0.9, 0.98)
PHASE_FLOOR, LAST_FLOOR = 0.3, 0.01  # of a phase's learning rate, what is left at its end


class SftStage(Stage[SceneBatch]):
    """A run of the supervised stage.

    A checkpoint holds as `model` the running mean of the weights, which later stages take, and as
    `weights` the last ones, from which the run resumes. A model that learns through LoRA has no
    auxiliary heads.
    """

    metrics = (*WEIGHTS,)

    def __init__(
        self,
        settings: SftSettings,
        tokenizer: PathTokenizer,
        model: MoondreamSegmentation,
        heads: AuxiliaryHeads | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.settings: SftSettings = settings
        self.tokenizer = tokenizer
        self.model = model
        self.heads = heads
        self.optimizer = optimizer
        self.soft = SoftTargets(first_number=tokenizer.path_ids(["0"])[0])
        self.average = WeightAverage(trainable_state_dict(model))

    def restart_average(self) -> None:
        """Begin the running mean from the weights as they are."""
        self.average = WeightAverage(trainable_state_dict(self.model))

    def phases(self) -> list[tuple[str, int]]:
        return [(phase.name, phase.steps) for phase in self.settings.planned_phases()]

    def batches(self, steps: range) -> Iterable[SceneBatch]:
        phase, _ = self.settings.phase_of(steps.start)
        config = self.model.config
        dataset = SceneBatches(
            config=config,
            tokenizer=self.tokenizer,
            scenes=SceneDataset(self.settings.scenes, side=config.vision.crop_size),
            phase=phase,
            steps=steps,
            seed=self.settings.seed,
            process=process_rank(),
        )
        return batch_stream(dataset, self.settings.workers)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: in each phase a cosine from the phase's peak."""
        phase, start = self.settings.phase_of(step)
        is_last = phase.name == self.settings.planned_phases()[-1].name
        return warmup_cosine(
            step - start,
            peak=self.settings.rate * phase.learning_rate,
            steps=phase.steps,
            warmup=self.settings.warmup,
            floor=LAST_FLOOR if is_last else PHASE_FLOOR,
        )

    def train_step(self, batch: SceneBatch) -> dict[str, float]:
        losses = self._losses(batch.to(self.model.device))
        weighted = [WEIGHTS[name] * loss for name, loss in losses.items()]
        update_weights(self.optimizer, torch.stack(weighted).sum())
        self.average.update(trainable_state_dict(self.model), self.settings.average)
        return {name: loss.item() for name, loss in losses.items()}

    def _losses(self, batch: SceneBatch) -> dict[str, Tensor]:
        model, tokens = self.model.model, self.model.config.tokens
        phase, _ = self.settings.phase_of(self.step)
        dtype = getattr(torch, self.settings.dtype)
        is_mixed = dtype != torch.float32
        with torch.autocast(batch.ids.device.type, dtype=dtype, enabled=is_mixed):
            if self.heads is None:
                return adapter_losses(model, tokens, self.soft, batch)
            vision_only = phase.name == "vision"
            return scene_losses(
                model, tokens, self.heads, self.soft, batch, vision_only=vision_only
            )

    def state_dict(self) -> dict[str, Any]:
        is_adapted = self.settings.model is not None
        state = {
            "model": self.average.mean,
            "weights": trainable_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "mean_steps": self.average.updates,
            "adapted": self.settings.model,
            "lora_rank": self.settings.lora_rank if is_adapted else 0,
        }
        if self.heads is not None:
            state["auxiliary"] = self.heads.state_dict()
        return state

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        load_trainable_state_dict(self.model, saved["weights"])
        self.average.updates = saved["mean_steps"]
        device = self.model.device
        self.average.mean = {name: value.to(device) for name, value in saved["model"].items()}
        if self.heads is not None:
            self.heads.load_state_dict(saved["auxiliary"])
        self.optimizer.load_state_dict(saved["optimizer"])


def new_stage(settings: SftSettings, device: torch.device) -> SftStage:
    """Return the small model afresh, or a model that is adapted, before its first step."""
    if settings.model is None:
        return _small_stage(settings, device)
    return _adapted_stage(settings, settings.model, device)


def _small_stage(settings: SftSettings, device: torch.device) -> SftStage:
    tokenizer = small_tokenizer()
    model = small_model(tokenizer, settings.seed).to(device)
    vision_dim, text_dim = model.config.vision.enc_dim, model.config.text.dim
    heads = AuxiliaryHeads(vision_dim, text_dim).to(device)
    parameters = [*model.model.parameters(), *heads.parameters()]
    groups = _decay_groups(parameters, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=ADAM_BETAS)
    return SftStage(settings, tokenizer, model, heads, optimizer)


def _decay_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups: matrices decay, vectors do not."""
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _adapted_stage(settings: SftSettings, name: str, device: torch.device) -> SftStage:
    source = resolve_model(name)
    model = load_model(source, device=device, dtype=getattr(torch, settings.dtype))
    add_lora(model, settings.lora_rank)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=ADAM_BETAS, weight_decay=settings.weight_decay)
    return SftStage(settings, load_tokenizer(source), model, None, optimizer)


def train(
    out: Path,
    settings: SftSettings,
    init: str | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = ignore_progress,
) -> SftStage:
    """Train to the last step of the last phase.

    The run starts from the checkpoint in the folder `out` if there is one, else from the weights of
    the model `init` if it is given, else afresh.
    """
    out.mkdir(parents=True, exist_ok=True)
    stage = new_stage(settings, torch.device(device))
    stage.tokenizer.save(out / TOKENIZER_FILE)
    if not resume(stage, out) and init is not None:
        warm_start(stage.model, stage.tokenizer, init)
        stage.restart_average()
    if settings.model is None:
        stage.model.model.vision.requires_grad_(not settings.freeze_vision)
    run_stage(stage, out, on_progress)
    return stage
