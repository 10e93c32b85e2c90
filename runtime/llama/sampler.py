"""The choice of the next token: a llama.cpp sampler chain for each sequence, and its grammar if it has one."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Mapping, Sequence
from typing import Protocol

import llama_cpp.llama_cpp as native
import numpy as np
import numpy.typing as npt

from runtime.generation import Dry, Sampling
from runtime.llama.context import Context
from runtime.llama.draw import Draw, can_draw

# llama.h: this seed would make llama.cpp draw one of its own.
_RANDOM_SEED = 0xFFFFFFFF
# llama.h, struct llama_token_data.
_CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])
# The filters must leave one token at least.
_MIN_KEPT = 1


class TokenFilter(Protocol):
    """Which tokens may come next in one answer."""

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""

    def allowed(self) -> npt.NDArray[np.int64]:
        """All tokens that may come next, ascending: int64 ``[n]``, n at least 1."""

    def accept(self, token: int) -> None:
        """Note that an allowed token came next."""


def fold_seed(seed: int | None) -> int:
    """A seed of llama.cpp's 32 bits: small seeds stay, larger ones are folded, None draws one.

    The one value that llama.cpp takes for "random" becomes its neighbour, so that every seed repeats its answer.
    """
    if seed is None:
        seed = secrets.randbits(32)
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED - 1


def _biases(sampling: Sampling, context: Context) -> dict[int, float]:
    """What is added to the logits of some tokens."""
    biases = {each.token: each.bias for each in sampling.biases}
    if sampling.ignores_end:
        biases |= dict.fromkeys(context.model.end_tokens, float("-inf"))
    return biases


class Sampler:
    """The chain of one sequence: biases, penalties, temperature, filters, draw. Owns native memory.

    Temperature comes before the filters, as in vLLM and transformers (llama.cpp's own tools put it last).
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: Sequence[int],
        context: Context,
        token_filter: TokenFilter | None = None,
    ) -> None:
        self._context = context
        self._filter = token_filter
        self._chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        biases = _biases(sampling, context)
        self._biased = np.fromiter(biases.keys(), np.intp)
        self._biases = np.fromiter(biases.values(), np.float32)
        self._add_biases(biases)
        n_of_biases = self._n_links
        self._add_penalties(sampling, prompt_tokens)
        self._add_dry(sampling.dry, prompt_tokens)
        is_plain = token_filter is None and self._n_links == n_of_biases
        self._is_argmax = is_plain and sampling.is_greedy
        self._draw: Draw | None = None
        if sampling.is_greedy:
            self._add(native.llama_sampler_init_greedy())
            return
        seed = fold_seed(sampling.seed)
        self._add_filters(sampling, seed)
        if is_plain and can_draw(sampling):
            self._draw = Draw(sampling, seed)
        self._add(native.llama_sampler_init_dist(seed))

    @property
    def _n_links(self) -> int:
        return int(native.llama_sampler_chain_n(self._chain))

    def _add(self, link: object) -> None:
        native.llama_sampler_chain_add(self._chain, link)

    def _add_biases(self, biases: Mapping[int, float]) -> None:
        if biases:
            array = (native.llama_logit_bias * len(biases))(*biases.items())
            self._add(native.llama_sampler_init_logit_bias(self._context.n_vocab, len(biases), array))

    def _add_penalties(self, sampling: Sampling, prompt_tokens: Sequence[int]) -> None:
        """Two counters, since repetition counts the prompt and the other two penalties do not."""
        n_vocab, all_n = self._context.n_vocab, self._context.n_kv_cells
        window = all_n if sampling.repetition_window < 0 else min(sampling.repetition_window, all_n)
        if sampling.repetition_penalty not in (0, 1) and window:
            repetition = native.llama_sampler_init_penalties(n_vocab, window, sampling.repetition_penalty, 0.0, 0.0)
            for token in prompt_tokens:
                native.llama_sampler_accept(repetition, token)
            self._add(repetition)
        frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
        if frequency or presence:
            self._add(native.llama_sampler_init_penalties(n_vocab, all_n, 1.0, frequency, presence))

    def _add_dry(self, dry: Dry, prompt_tokens: Sequence[int]) -> None:
        if not dry.multiplier:
            return
        all_n = self._context.n_kv_cells
        last_n = all_n if dry.last_n < 0 else min(dry.last_n, all_n)
        breakers = (ctypes.c_char_p * len(dry.breakers))(*(text.encode() for text in dry.breakers))
        vocabulary = self._context.model.vocabulary
        link = native.llama_sampler_init_dry(
            vocabulary, dry.multiplier, dry.base, dry.allowed_length, last_n, breakers, len(dry.breakers)
        )
        for token in prompt_tokens:
            native.llama_sampler_accept(link, token)
        self._add(link)

    def _add_filters(self, sampling: Sampling, seed: int) -> None:
        if sampling.temperature != 1:
            self._add(native.llama_sampler_init_temp(sampling.temperature))
        if sampling.top_k > 0:
            self._add(native.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(native.llama_sampler_init_typical(sampling.typical_p, _MIN_KEPT))
        if sampling.top_p < 1:
            self._add(native.llama_sampler_init_top_p(sampling.top_p, _MIN_KEPT))
        if sampling.min_p > 0:
            self._add(native.llama_sampler_init_min_p(sampling.min_p, _MIN_KEPT))
        if sampling.xtc_probability > 0:
            self._add(native.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEPT, seed))

    def sample(self, row: int) -> int:
        """Choose a token from the logits at ``row`` of the last batch, and count it.

        Raises:
            UnsupportedGrammar: the grammar turned out too complex in the middle of the answer.
        """
        if self._is_argmax or self._draw is not None:
            return self._sample_here(self._context.logits_view(row))
        if self._filter is None:
            return int(native.llama_sampler_sample(self._chain, self._context.handle, row))
        return self._sample_filtered(self._context.logits(row), self._filter)

    def _sample_here(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose without the chain, which first copies each of 256,000 logits into a struct: 0.5 ms and more.

        Biases are added where llama.cpp has the logits, and taken back.
        """
        kept = logits[self._biased]
        logits[self._biased] += self._biases
        token = int(logits.argmax()) if self._draw is None else self._draw.take(logits, self._context.scratch)
        logits[self._biased] = kept
        return token

    def _sample_filtered(self, logits: npt.NDArray[np.float32], token_filter: TokenFilter) -> int:
        """Choose freely first, and among the allowed tokens only if that choice is refused.

        The result is distributed as if the filter had come first: a free choice is one of the allowed tokens with
        their relative odds. Most choices of a model that writes what its grammar asks for are allowed, and testing one
        token costs microseconds where finding all allowed ones of 256,000 costs up to milliseconds.
        """
        token = self._choose(logits, np.arange(len(logits)))
        if not token_filter.allows(token):
            allowed = token_filter.allowed()
            token = int(allowed[0]) if len(allowed) == 1 else self._choose(logits, allowed)
        token_filter.accept(token)
        native.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> int:
        """The chain's choice among ``tokens``; nothing is counted."""
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["token"], candidates["logit"] = tokens, logits[tokens]
        data = candidates.ctypes.data_as(native.llama_token_data_p)
        array = native.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        native.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def free(self) -> None:
        """Give the native memory back."""
        native.llama_sampler_free(self._chain)
        self._chain = None
