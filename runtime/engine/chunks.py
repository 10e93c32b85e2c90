"""A sequence's part of a batch as the context takes it: its tokens with their positions, and their blends."""

from __future__ import annotations

from runtime.engine.scheduler import BatchPart
from runtime.engine.sequence import State
from runtime.generation import Blend
from runtime.llama.context import Chunk


def chunks_of(part: BatchPart) -> list[tuple[Chunk, Blend]]:
    """The tokens of a part and the blends they run under: one chunk, or two where an aLoRA is invoked in between.

    The last chunk holds the draft; the rows of the logits that are wanted are successive and end with its last token.
    """
    sequence, coverage = part.sequence, part.sequence.coverage
    start, end = sequence.n_computed, sequence.n_computed + part.width
    tokens = [*sequence.tokens[start : start + part.n_tokens], *part.draft]
    middle = min(max(coverage.start, start), end)
    wants_logits = part.completes and sequence.n_answer_max > 0
    wants_all_logits = bool(part.draft) or (sequence.is_scored and sequence.state is State.PREFILL)
    return [
        (
            Chunk(
                sequence.sequence_id,
                tokens[first - start : last - start],
                first,
                wants_logits and last == end,
                wants_all_logits,
            ),
            coverage.blend_at(first),
        )
        for first, last in ((start, middle), (middle, end))
        if first < last
    ]
