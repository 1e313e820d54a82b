"""The version of the method: by it, answers of an older code are told from those of this one."""

from __future__ import annotations

# Raise it by one in every change after which some row would be answered otherwise than before: in
# how images are read, decoded or cropped, in prompts, decoding, refinement, cleaning, tracing or
# scores, also where the change mends a fault. All outputs are then computed anew by their next run.
# A change of speed, of logs or of the layout of files leaves it as it is, and so do weights,
# tokenizers and settings, which are part of a shard's identity by themselves.
METHOD_VERSION = 4
