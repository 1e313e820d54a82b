#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, safetensors 0.8.0: where a tensor stands in two files of a
# sharded checkpoint (a leftover of an earlier save), from_pretrained takes it from the last file,
# although the index names the first one. The index says what is read only as a list of files.
# Seen: the index maps the weight to the first file (all ones); the model loads the second (all
# twos).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.23.0 torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - "$folder/model" <<'PY'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

folder = Path(sys.argv[1])
config = BertConfig(
    vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
BertModel(config).save_pretrained(folder)
state = load_file(folder / "model.safetensors")
(folder / "model.safetensors").unlink()
name = "embeddings.word_embeddings.weight"
first = state | {name: torch.full_like(state[name], 1.0)}
save_file(first, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
bias = "pooler.dense.bias"
second = {name: torch.full_like(state[name], 2.0), bias: state[bias]}
save_file(second, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
index = {key: "model-00001-of-00002.safetensors" for key in state}
index[bias] = "model-00002-of-00002.safetensors"
text = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
(folder / "model.safetensors.index.json").write_text(text)
loaded = BertModel.from_pretrained(folder).state_dict()[name][2, 0].item()
print("the index names the file of ones; loaded:", loaded)
assert loaded == 2.0, "the behaviour has changed"
PY
