"""The choice of the next token: a llama.cpp sampler chain for each sequence."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import llama_cpp.llama_cpp as native

from runtime.generation import Sampling
from runtime.llama.context import Context

# llama.h: this seed would make llama.cpp draw one of its own.
_RANDOM_SEED = 0xFFFFFFFF


def fold_seed(seed: int | None) -> int:
    """A seed of llama.cpp's 32 bits: small seeds stay, larger ones are folded, None draws one.

    The one value that llama.cpp takes for "random" becomes its neighbour, so that every seed repeats its answer.
    """
    if seed is None:
        seed = secrets.randbits(32)
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED - 1


class Sampler:
    """The chain of one sequence: penalties, temperature, top-k, top-p, draw. Owns native memory.

    Temperature comes before the filters, as in vLLM and transformers (llama.cpp's own tools put it last).
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Sequence[int], context: Context) -> None:
        self._context = context
        self._chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        self._add_penalties(sampling, prompt_tokens)
        if sampling.is_greedy:
            self._add(native.llama_sampler_init_greedy())
            return
        if sampling.temperature != 1:
            self._add(native.llama_sampler_init_temp(sampling.temperature))
        if sampling.top_k > 0:
            self._add(native.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            self._add(native.llama_sampler_init_top_p(sampling.top_p, 1))
        self._add(native.llama_sampler_init_dist(fold_seed(sampling.seed)))

    def _add(self, link: object) -> None:
        native.llama_sampler_chain_add(self._chain, link)

    def _add_penalties(self, sampling: Sampling, prompt_tokens: Sequence[int]) -> None:
        """Two counters, since repetition counts the prompt and the other two penalties do not."""
        n_vocab, last_n = self._context.n_vocab, self._context.n_kv_cells
        if sampling.repetition_penalty not in (0, 1):
            repetition = native.llama_sampler_init_penalties(n_vocab, last_n, sampling.repetition_penalty, 0.0, 0.0)
            for token in prompt_tokens:
                native.llama_sampler_accept(repetition, token)
            self._add(repetition)
        frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
        if frequency or presence:
            self._add(native.llama_sampler_init_penalties(n_vocab, last_n, 1.0, frequency, presence))

    def sample(self, row: int) -> int:
        """Choose a token from the logits at ``row`` of the last batch, and count it."""
        return int(native.llama_sampler_sample(self._chain, self._context.handle, row))

    def free(self) -> None:
        """Give the native memory back."""
        native.llama_sampler_free(self._chain)
        self._chain = None
