"""What the web process and the engine say to each other: every command and event; ``pipe.py`` makes lines of them.

A session::

    web                                  engine
    Load(settings)                  ->
                                    <-   Loading(fraction) ...
                                    <-   Ready(model, batching)        or LoadFailed, and the engine exits
                                    <-   BatchingChanged(...)          at most twice, while lanes are proven
    AddAdapter(digest, path)        ->
                                    <-   AdapterAdded(digest)          or AdapterRefused
    RemoveAdapter(digest)           ->
                                    <-   AdapterRemoved(digest)        once no request runs under it
    Generate(request)               ->
                                    <-   Working(requests, limit)      whenever either changes
                                    <-   Accepted, Started, Text ..., Finished    or Failed; exactly one end for each
    Cancel(request_id)              ->                                 (a cancelled request gets no further events)
    end of file                     ->   the engine exits
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config import EngineSettings
from runtime.generation import Blend, FinishReason, GenerationRequest, Usage


@dataclass(frozen=True, slots=True)
class Load:
    """Load the base model. Always the first command, and sent once."""

    settings: EngineSettings
    state_dir: str = ""
    """Folder where the engine remembers what it has proven; empty: it remembers nothing."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Make one answer."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client has left; the sequence is freed at the next step."""

    request_id: str


@dataclass(frozen=True, slots=True)
class AddAdapter:
    """Make the GGUF adapter at ``path`` known under its content digest."""

    digest: str
    path: str


@dataclass(frozen=True, slots=True)
class RemoveAdapter:
    """Forget an adapter. Requests that already run under it finish under it."""

    digest: str


@dataclass(frozen=True, slots=True)
class PinAdapter:
    """Keep an adapter's weights in a lane, or let the lane be given to others again. It is not answered."""

    digest: str
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class Loading:
    """How much of the model file has been read, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded, for ``/health`` and the log."""

    name: str
    size_bytes: int
    n_params: int
    n_layers: int
    n_ctx: int
    """Longest sequence of one request, prompt and answer together."""
    n_kv_cells: int
    """Cells of the key-value cache, shared by all sequences."""
    n_parallel: int
    device: str
    """The devices that hold layers, their cards, and how many layers; or ``CPU``."""
    warnings: tuple[str, ...] = ()
    """What may make answers worse than they should be, for the server's operator."""
    cache_bytes: int = 0
    """Bytes of the key-value cache."""
    lanes_bytes: int = 0
    """Bytes of the lanes' weights; 0 without lanes."""
    backends: tuple[str, ...] = ()
    """What this build of llama.cpp can use: ``CUDA``, ``BLAS``, ``CPU``."""
    n_device_layers: int = 0
    """Layers on devices, the output head counted as one more than the model has."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Requests may come. ``adapter_batching`` is ``mixed`` or ``grouped``; ``batching_reason`` says why in a line."""

    model: ModelInfo
    adapter_batching: str
    batching_reason: str
    llama_cpp: str = ""
    """The commit of llama.cpp."""


LANES_WAITING = "lanes are proven as soon as there is an adapter"
LANES_PROVING = "lanes are being proven on this machine, once; until then one adapter a batch"
"""Reasons of a way of batching that may still change."""


@dataclass(frozen=True, slots=True)
class BatchingChanged:
    """How adapters share batches has changed, or the reason for it."""

    adapter_batching: str
    batching_reason: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be served; the engine exits after this event."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Working:
    """Sent before work that may take long or end the process: which requests take part, and the longest it may take.

    An engine with requests that says nothing for ``limit_s`` hangs. It holds until the next one.
    """

    request_ids: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True, slots=True)
class AdapterAdded:
    """An adapter may be named in requests."""

    digest: str


@dataclass(frozen=True, slots=True)
class AdapterRemoved:
    """An adapter that was to be removed is used by no request any more, and its memory is free."""

    digest: str


@dataclass(frozen=True, slots=True)
class AdapterRefused:
    """An adapter cannot be used, and why."""

    digest: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request waits for its turn: nothing in it can be refused any more."""

    request_id: str
    n_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt has been computed; text comes next. ``n_cached_tokens`` of the prompt were not computed again."""

    request_id: str
    n_prompt_tokens: int
    n_cached_tokens: int = 0
    queue_s: float = 0.0
    """Seconds from submission to a place among the running sequences."""
    lane_wait_s: float = 0.0
    """Seconds from there to the first batch: until the adapters' weights were in a lane."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood in a place, and the natural logarithm of its probability."""

    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's bytes (a control token's name), its logprob, and the likeliest tokens in its place.

    Logprobs are those of the model's own logits, before temperature, penalties and filters. The first token of a
    sequence has none.
    """

    piece: bytes
    logprob: float | None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The next tokens of a prompt whose logprobs were asked for; they come before ``Started``."""

    request_id: str
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """The next whole characters of an answer, and how many tokens they came from."""

    request_id: str
    text: str
    n_tokens: int = 1
    scores: tuple[TokenScore, ...] = ()
    """The logprobs of these tokens, if the request asked for them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole."""

    request_id: str
    finish_reason: FinishReason
    usage: Usage
    end_score: TokenScore | None = None
    """The logprob of the token that ended the answer, if the request asked for logprobs and the model chose one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (further) answer; ``code`` names a class of ``runtime.errors``."""

    request_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class LaneStats:
    """The lanes of the bank by state, lane 0 of the base model left out; all zero without lanes."""

    n_empty: int = 0
    n_filling: int = 0
    """Weights are being written."""
    n_used: int = 0
    """Some running sequence needs the weights."""
    n_idle: int = 0
    """No sequence needs the weights now; the next request under the blend finds them."""
    n_fills: int = 0
    """Times that weights were written, since the start."""
    resident: tuple[str, ...] = ()
    """Digests of the adapters that have a lane, alone or in a blend."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine holds at this moment; sent about once a second while it works, and when it falls idle."""

    n_running: int
    n_waiting: int
    n_kv_cells_used: int
    """Cells that running sequences hold."""
    n_kv_cells_kept: int
    """Cells that kept prefixes alone hold."""
    n_steps: int
    """Batches decoded since the start."""
    n_decoded_tokens: int
    """Tokens that went through the model since the start, prompts included."""
    n_prompt_tokens: int
    """Tokens of the prompts of admitted sequences, since the start."""
    n_cached_tokens: int
    """Prompt tokens of admitted sequences that were found in the cache."""
    n_steps_by_blends: tuple[tuple[int, int], ...]
    """``(number of distinct blends, batches that held that number)``, since the start."""
    lanes: LaneStats
    running_blends: tuple[Blend, ...]
    waiting_blends: tuple[Blend, ...]
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    """Drafted tokens since the start, and those of them that were accepted."""


Command = Load | Generate | Cancel | AddAdapter | RemoveAdapter | PinAdapter
Event = (
    Loading
    | Ready
    | BatchingChanged
    | LoadFailed
    | Working
    | AdapterAdded
    | AdapterRefused
    | AdapterRemoved
    | Accepted
    | PromptScores
    | Started
    | Text
    | Finished
    | Failed
    | Stats
)
Message = Command | Event
