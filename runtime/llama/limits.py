"""Numbers of a context that planning needs too; without llama.cpp, so that `gemlane doctor` outlives a broken one."""

from __future__ import annotations

# Tokens of one batch, beside one for each sequence, whose logits can be had: with 256,000 of vocabulary 1 MB each.
MAX_SCORED = 32
