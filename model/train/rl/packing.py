"""Rollouts packed for one teacher-forced pass, with every action that was taken in them.

The actions of a rollout are whether the thing is there, the bins of its box (x, y, width, height),
and the tokens of its path with the end token.

Shapes: I prompts, G rollouts of each, P image tokens, D width, S positions of a packed row, N
actions of one kind, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wordmask.model.decoding.prompt import Prompt
from wordmask.model.decoding.requests import Decoded
from wordmask.model.nn.config import BOX_TOKENS
from wordmask.model.nn.region import coord_bin, size_bin
from wordmask.model.train.rl.rollouts import Policy, ScenePrompt
from wordmask.model.train.teacher_forcing import PREFIX

PADDING = -2  # owner of positions that belong to no rollout and that none sees
NO_SIZE = (0.0, 0.0)  # at tokens that are no size

# Columns of the actions of a kind: row, position, rollout, and what was chosen.
ACTION_COLUMNS = {"presence": 4, "coord": 4, "size": 5, "path": 6}


@dataclass(frozen=True, kw_only=True)
class PackedRollouts:
    """One row for each prompt: [start, image, prompt | rollout | rollout | ...].

    Actions are grouped by kind; `*_at` (N, 2) are the row and the position whose stream an action
    is read from.
    """

    image_IPD: Tensor
    ids_IS: Tensor
    coords_IS: Tensor  # value of a coordinate token, unit of image
    sizes_IS2: Tensor  # value of a size token, unit of image
    position_IS: Tensor
    owner_IS: Tensor  # rollout (0..G-1) that a position belongs to, `PREFIX` or `PADDING`
    presence_at: Tensor
    presence: Tensor  # (N,) 0: absent, 1: there
    coord_at: Tensor
    coord: Tensor  # (N,) bins
    size_at: Tensor
    size: Tensor  # (N, 2) bins
    path_at: Tensor
    path: Tensor  # (N,) columns of the grammar's log-probabilities
    state: Tensor  # (N,) of the grammar
    left: Tensor  # (N,) tokens that may still be written
    rollout_A: Tensor  # rollout (i * G + g) of each action, in the order of `ActionLogProbs`


def pack(
    policy: Policy, prompts: Sequence[ScenePrompt], rollouts: Sequence[Sequence[Decoded]]
) -> PackedRollouts:
    """Lay out rollouts.

    Raises:
        ValueError: if a prompt holds spatial references.
    """
    rows = []
    for index, (prompt, group) in enumerate(zip(prompts, rollouts, strict=True)):
        row = _PackedRow(policy, len(prompt.image_PD), prompt.prompt)
        for owner, rollout in enumerate(group):
            number = index * len(group) + owner
            row.add(rollout, owner, row=index, number=number)
        rows.append(row)
    images = [prompt.image_PD for prompt in prompts]
    device = images[0].device
    positions = _position_tensors(rows, device)
    actions = _action_tensors(rows, device)
    return PackedRollouts(image_IPD=torch.stack(images), **positions, **actions)


def _position_tensors(rows: Sequence[_PackedRow], device: torch.device) -> dict[str, Tensor]:
    """Return what is at each position of the rows, by the fields of `PackedRollouts`."""
    ids = [row.ids for row in rows]
    positions = [row.positions for row in rows]
    coords = [row.coords for row in rows]
    sizes = [row.sizes for row in rows]
    owners = [row.owners for row in rows]
    return {
        "ids_IS": _padded(ids, 0, device),
        "position_IS": _padded(positions, 0, device),
        "coords_IS": _padded(coords, 0.0, device),
        "sizes_IS2": _padded(sizes, NO_SIZE, device),
        "owner_IS": _padded(owners, PADDING, device),
    }


def _action_tensors(rows: Sequence[_PackedRow], device: torch.device) -> dict[str, Tensor]:
    """Return the actions of the rows, by the fields of `PackedRollouts`."""
    found: dict[str, Tensor] = {}
    rollouts: dict[str, Tensor] = {}
    chosen: dict[str, Tensor] = {}
    for kind in ACTION_COLUMNS:
        actions = _actions(rows, kind, device)
        found[f"{kind}_at"] = actions[:, :2]
        rollouts[kind] = actions[:, 2]
        chosen[kind] = actions[:, 3:]
    path, state, left = chosen["path"].unbind(1)
    # A size is two actions: a width and a height.
    rollout_A = [rollouts[kind] for kind in ("presence", "coord", "size", "size", "path")]
    return found | {
        "presence": chosen["presence"][:, 0],
        "coord": chosen["coord"][:, 0],
        "size": chosen["size"],
        "path": path,
        "state": state,
        "left": left,
        "rollout_A": torch.cat(rollout_A),
    }


def _actions(rows: Sequence[_PackedRow], kind: str, device: torch.device) -> Tensor:
    """Return the actions of a kind of all rows, (N, columns)."""
    actions = [action for row in rows for action in row.actions[kind]]
    table = torch.tensor(actions, dtype=torch.long, device=device)
    return table.view(-1, ACTION_COLUMNS[kind])


def _padded(rows: Sequence[Sequence[Any]], fill: Any, device: torch.device) -> Tensor:
    """Return lists as rows of one tensor, as long as the longest."""
    length = max(map(len, rows))
    padded = []
    for row in rows:
        padding = [fill] * (length - len(row))
        padded.append([*row, *padding])
    return torch.tensor(padded, device=device)


class _PackedRow:
    """One prompt and its rollouts, position by position."""

    def __init__(self, policy: Policy, n_image: int, prompt: Prompt) -> None:
        if prompt.regions:
            raise ValueError(
                f"prompt holds {len(prompt.regions)} spatial references: rollouts are packed"
                " without any"
            )
        self._region = policy.config.region
        self._tokens = policy.config.tokens
        self._grammar = policy.grammar
        self.ids = [self._tokens.bos_id, *[0] * n_image, *prompt.ids]
        self._prefix = len(self.ids)
        self.positions = [*range(self._prefix)]
        self.owners = [PREFIX] * self._prefix
        self.coords = [0.0] * self._prefix
        self.sizes = [NO_SIZE] * self._prefix
        self.actions: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in ACTION_COLUMNS}

    def add(self, rollout: Decoded, owner: int, *, row: int, number: int) -> None:
        """Append a rollout: the `owner`-th of row `row`, and `number`-th of all."""
        # Whether the thing is there, and its x, are read from the prompt's last token.
        prompt_end = self._prefix - 1
        is_present = int(not rollout.absent)
        self.actions["presence"].append((row, prompt_end, number, is_present))
        if rollout.absent:
            return
        begin = len(self.ids)
        x_bin, y_bin, w_bin, h_bin = self._box_bins(rollout)
        coords = self.actions["coord"]
        coords.append((row, prompt_end, number, x_bin))
        coords.append((row, begin, number, y_bin))
        self.actions["size"].append((row, begin + 1, number, w_bin, h_bin))
        path_begin = begin + BOX_TOKENS - 1
        self._add_path_actions(rollout, row, path_begin, number)
        self._add_tokens(rollout, owner)

    def _box_bins(self, rollout: Decoded) -> tuple[int, int, int, int]:
        cx, cy, w, h = rollout.box
        n_coord = self._region.coord_out_dim
        n_size = self._region.size_out_dim // 2
        return (
            round(coord_bin(cx, n_coord)),
            round(coord_bin(cy, n_coord)),
            round(size_bin(w, n_size)),
            round(size_bin(h, n_size)),
        )

    def _add_path_actions(self, rollout: Decoded, row: int, begin: int, number: int) -> None:
        most = self._tokens.max_new_tokens
        # A path that fills the limit has no end token.
        whole_path = [*rollout.ids, self._tokens.eos_id]
        path = whole_path[:most]
        columns = self._grammar.columns(path)
        states = self._grammar.states(path)
        for step, (column, state) in enumerate(zip(columns, states, strict=True)):
            position = begin + step
            left = most - step
            action = (row, position, number, column, state, left)
            self.actions["path"].append(action)

    def _add_tokens(self, rollout: Decoded, owner: int) -> None:
        cx, cy, w, h = rollout.box
        tokens = self._tokens
        path = rollout.ids
        length = BOX_TOKENS + len(path)
        self.ids += [tokens.coord_id, tokens.coord_id, tokens.size_id]
        self.ids += path
        self.coords += [cx, cy]
        self.coords += [0.0] * (length - 2)
        self.sizes += [NO_SIZE, NO_SIZE, (w, h)]
        self.sizes += [NO_SIZE] * len(path)
        stop = self._prefix + length
        self.positions += range(self._prefix, stop)
        self.owners += [owner] * length
