"""Small values that the engine's tests are written with."""

from __future__ import annotations

from runtime.engine.sequence import Sequence
from runtime.generation import BASE, Blend, BlendMember, GenerationRequest, Prompt, Sampling, Segment

N_CTX = 64
GREEDY = Sampling(temperature=0)


def blend(*names: str, scale: float = 1.0) -> Blend:
    """Return a blend of adapters whose digests repeat one letter, a to f."""
    return Blend(tuple(BlendMember(name * 64, scale) for name in names))


def request(
    request_id: str = "r", *, max_tokens: int = 4, under: Blend = BASE, stop: tuple[str, ...] = ()
) -> GenerationRequest:
    """Return a request whose prompt does not matter."""
    prompt = Prompt((Segment("?", has_control_tokens=False),))
    return GenerationRequest(request_id, prompt, max_tokens, GREEDY, under, stop)


def sequence(request_id: str = "r", *, n_prompt: int = 8, max_tokens: int = 4, under: Blend = BASE) -> Sequence:
    """Return a waiting sequence; no two ids have prompts with a common prefix."""
    first = sum(ord(letter) * 31**place for place, letter in enumerate(request_id)) % 10_000_000
    tokens = [first * 100 + n for n in range(n_prompt)]
    return Sequence(request(request_id, max_tokens=max_tokens, under=under), tokens, N_CTX)
