#!/usr/bin/env bash
# torch 2.13.0, CPU: torch.nn.functional.grouped_mm (mixture of experts) takes offsets that end
# before the last row, as a padded batch of tokens has them, and leaves the rows past the last
# offset as the allocator gave them: neither zero nor NaN, and different from call to call.
# Seen: after a tensor of the same size filled with 7 was freed, the tail of the product holds
# values other than zeros.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
import torch.nn.functional as F

tokens, experts, width = 64, 2, 64
x = torch.ones(tokens, width, dtype=torch.bfloat16)
weights = torch.ones(experts, width, width, dtype=torch.bfloat16)
offsets = torch.tensor([16, 32], dtype=torch.int32)
tails = []
for _ in range(20):
    filler = torch.full((tokens, width), 7.0, dtype=torch.bfloat16)
    del filler
    out = F.grouped_mm(x, weights, offs=offsets)
    tails.append(out[32:].clone())
    assert bool((out[:32] == width).all())
unwritten = any(bool((tail != 0).any()) for tail in tails)
print("rows past the last offset, first values:", [float(t.flatten()[0]) for t in tails[:5]])
assert unwritten, "the behaviour has changed"
PY
