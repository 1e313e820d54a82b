"""Make a model folder of training checkpoints: weights in bfloat16, configuration, tokenizer, card.

Run: `python -m wordmask.model.train.export --sft runs/sft --refiner runs/refiner --dest
model/assets/demo`; the folder of the reinforcement learning does in place of the supervised
stage's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from wordmask.model.hub.registry import CARD_FILE, TOKENIZER_FILE
from wordmask.model.nn.moondream import MoondreamSegmentation, parameter_count
from wordmask.model.train.sft.data import NAMES
from wordmask.model.train.sft.train import SftSettings
from wordmask.model.train.small_model import trained_model


def export_model(sft: Path, refiner: Path | None, dest: Path) -> MoondreamSegmentation:
    """Write the folder; the card keeps its results if there is one, and gets the rest anew. `sft`
    is the folder of either stage that trains the decoder."""
    decoder = trained_model(sft)
    model, steps = decoder.model, {decoder.stage: decoder.step}
    if refiner is not None:
        head = torch.load(refiner / "last.pt", weights_only=True)
        model.head.load_state_dict(head["head"])
        steps["refiner"] = head["step"]
    model.to(torch.bfloat16).save_pretrained(dest)
    decoder.tokenizer.save(dest / TOKENIZER_FILE)
    card_file = dest / CARD_FILE
    results = json.loads(card_file.read_text())["results"] if card_file.exists() else {}
    card = {
        "description": (
            "small model of the full architecture, for laptops, tests and demos; knows drawn"
            " things, not the real world"
        ),
        "trained_on": (
            f"synthetic scenes drawn by model/train: {len(NAMES)} things by name, colour, size,"
            " place and relation"
        ),
        "seed": SftSettings.seed,
        "steps": steps,
        "parameters": parameter_count(model),
        "results": results,
    }
    card_file.write_text(json.dumps(card, indent=1) + "\n")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sft",
        type=Path,
        required=True,
        help="folder of the supervised stage, or of the one after it",
    )
    parser.add_argument(
        "--refiner", type=Path, help="folder of the refiner stage; without it the head is untrained"
    )
    parser.add_argument("--dest", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    model = export_model(args.sft, args.refiner, args.dest)
    print(f"{parameter_count(model) / 1e6:.2f} M parameters in {args.dest}")


if __name__ == "__main__":
    main()
