"""How a request becomes a waiting sequence: its prompt is tokenised, its limits are checked, its adapters are held."""

from __future__ import annotations

from runtime.engine.adapters.protocol import Adapters
from runtime.engine.adapters.users import AdapterUsers
from runtime.engine.coverage import cover
from runtime.engine.sequence import Sequence
from runtime.errors import AdapterError, ContextExceeded, InvalidParameter
from runtime.generation import GenerationRequest
from runtime.llama.model import Model

# Characters of a prediction that are read for each token of the context: a token of prose has four.
_MAX_GUESS_CHARACTERS = 8


class Accepting:
    """Makes sequences for one model and one context window."""

    def __init__(self, model: Model, adapters: Adapters, users: AdapterUsers, n_ctx: int) -> None:
        """Accept nothing yet.

        Args:
            model: tokenises.
            adapters: say which blends can be applied.
            users: count the accepted sequence as a user of its adapters, until its end.
            n_ctx: the context window, in tokens.
        """
        self._model = model
        self._adapters = adapters
        self._users = users
        self._n_ctx = n_ctx

    def accept(self, request: GenerationRequest) -> Sequence:
        """Make the sequence of a request; a request that is refused leaves nothing behind.

        Raises:
            InvalidRequest: the model cannot read the prompt, see ``Model.tokenize``.
            ContextExceeded: the prompt leaves no room for an answer.
            InvalidParameter: a bias names a token that the model does not have.
            AdapterError: an adapter is not known any more, or the adapters cannot be applied together.
        """
        model, n_ctx = self._model, self._n_ctx
        # A prompt of megabytes is refused unread: tokenising it would stop every stream for seconds.
        if model.min_tokens(request.prompt) >= n_ctx:
            raise self._too_long(f"at least {n_ctx}")
        tokens = model.tokenize(request.prompt)
        if len(tokens) >= n_ctx:
            raise self._too_long(str(len(tokens)))
        if any(each.token >= model.n_vocab for each in request.sampling.biases):
            raise InvalidParameter(f"logit_bias names a token id outside of 0..{model.n_vocab - 1}", "logit_bias")
        guess = model.tokenize_bytes(request.prediction[: _MAX_GUESS_CHARACTERS * n_ctx].encode())
        sequence = Sequence(request, tokens, n_ctx, cover(request.blend, self._hold_adapters(request), tokens))
        sequence.guess = tuple(guess)
        return sequence

    def _hold_adapters(self, request: GenerationRequest) -> tuple[int, ...]:
        """Count one more user of a request's adapters; return the token sequence that invokes them."""
        self._users.hold(request.blend)
        try:
            return self._adapters.check(request.blend)
        except AdapterError:
            self._users.release(request.blend)
            raise

    def _too_long(self, n_tokens: str) -> ContextExceeded:
        return ContextExceeded(
            f"the prompt has {n_tokens} tokens; at most {self._n_ctx - 1} leave room for an answer "
            f"in the context window of {self._n_ctx}"
        )
