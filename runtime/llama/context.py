"""A context: the key-value cache, and the batches that go through the model."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp.llama_cpp as native
import numpy as np
import numpy.typing as npt

from runtime.errors import DecodeError, ModelLoadError
from runtime.llama.adapter import NativeAdapter
from runtime.llama.draw import make_scratch
from runtime.llama.limits import MAX_SCORED
from runtime.llama.model import Model

# ggml.h, enum ggml_type.
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
# llama.h, enum llama_flash_attn_type.
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
# llama-cparams.h, LLAMA_MAX_SEQ. Batches take ids below ``n_sequences``; a unified cache can hold the others too.
MAX_SEQUENCE_IDS = 256


@dataclass(frozen=True, slots=True)
class ContextShape:
    """How large a context is."""

    n_kv_cells: int
    """Tokens all sequences hold together; llama.cpp rounds up to a multiple of 256."""
    n_batch: int
    """Most tokens of one decode."""
    n_sequences: int
    """Sequence ids that may stand in a batch: 0 to ``n_sequences - 1``."""
    n_threads: int
    kv_type: str = "f16"
    flash_attention: str = "auto"
    """``auto``, ``on`` or ``off``."""
    is_kv_on_device: bool = True
    """Whether keys and values lie where their layer does; otherwise in the machine's memory."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence in a batch, at consecutive positions from ``position``."""

    sequence_id: int
    tokens: Sequence[int]
    position: int
    wants_logits: bool
    """Whether the logits after its last token are wanted."""
    wants_all_logits: bool = False
    """Whether the logits after each of its tokens are wanted; the rows before the last one's are theirs."""

    @property
    def n_outputs(self) -> int:
        """Tokens whose logits are wanted."""
        return len(self.tokens) if self.wants_all_logits else int(self.wants_logits)


class Context:
    """One llama.cpp context with a unified cache. Owns native memory; used by one thread."""

    def __init__(self, model: Model, shape: ContextShape, eval_callback: object = None) -> None:
        """Allocate the cache and the compute buffers.

        Raises:
            ModelLoadError: there is not enough memory, or the model cannot use the cache's type.
        """
        parameters = native.llama_context_default_params()
        parameters.n_ctx = shape.n_kv_cells
        # One ubatch for each decode, its tokens in the order given: lanes and logits rows count on it.
        parameters.n_batch = parameters.n_ubatch = shape.n_batch
        parameters.n_seq_max = shape.n_sequences
        parameters.n_outputs_max = min(shape.n_batch, shape.n_sequences + MAX_SCORED)
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = shape.n_threads
        parameters.type_k = parameters.type_v = KV_TYPES[shape.kv_type]
        # A quantised V cache exists only under flash attention (llama.cpp, llama_init_from_model).
        flash_attention = "on" if shape.kv_type == "q8_0" else shape.flash_attention
        parameters.flash_attn_type = FLASH_ATTENTION[flash_attention]
        parameters.offload_kqv = shape.is_kv_on_device
        parameters.no_perf = True
        # Weights must be multiplied where they lie: lanes lie beside them.
        parameters.op_offload = False
        if eval_callback is not None:
            parameters.cb_eval = eval_callback
        model.library.take_errors()
        self.handle = native.llama_init_from_model(model.handle, parameters)
        if not self.handle:
            raise ModelLoadError(f"llama.cpp cannot make a context: {model.library.take_errors()}")
        self._library = model.library
        self._memory = native.llama_get_memory(self.handle)
        self.model = model
        self.n_vocab = model.n_vocab
        self.scratch = make_scratch(self.n_vocab)
        self.n_kv_cells: int = native.llama_n_ctx(self.handle)
        self.n_sequences = shape.n_sequences
        self._make_batch(shape.n_batch)

    def _make_batch(self, n_batch: int) -> None:
        """A ``llama_batch`` over arrays of ours, so that filling it is a copy of lists."""
        self._tokens = np.zeros(n_batch, np.int32)
        self._positions = np.zeros(n_batch, np.int32)
        self._sequence_ids = np.zeros(n_batch, np.int32)
        self._n_sequence_ids = np.ones(n_batch, np.int32)
        self._wants_logits = np.zeros(n_batch, np.int8)
        addresses = self._sequence_ids.ctypes.data + 4 * np.arange(n_batch, dtype=np.uint64)
        self._sequence_id_pointers = addresses.astype(np.uint64)
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._batch = native.llama_batch(
            token=self._tokens.ctypes.data_as(int32),
            pos=self._positions.ctypes.data_as(int32),
            n_seq_id=self._n_sequence_ids.ctypes.data_as(int32),
            seq_id=self._sequence_id_pointers.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self._wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def free(self) -> None:
        """Give the native memory back; the adapters it uses may be freed after."""
        native.llama_free(self.handle)
        self.handle = None

    def set_adapters(self, adapters: Sequence[tuple[NativeAdapter, float]]) -> None:
        """Let every coming batch run under these adapters and scales; a change costs a re-reservation.

        Raises:
            DecodeError: llama.cpp refused them.
        """
        n_adapters = len(adapters)
        handles = (native.llama_adapter_lora_p_ctypes * n_adapters)(*(adapter.handle for adapter, _ in adapters))
        scales = (ctypes.c_float * n_adapters)(*(scale for _, scale in adapters))
        if native.llama_set_adapters_lora(self.handle, handles, n_adapters, scales) != 0:
            raise DecodeError("llama.cpp refused a set of adapters that it had loaded itself")

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Run one batch through the model; a chunk's row is where its logits are until the next decode.

        Returns:
            For each chunk its row, or -1 if it wanted no logits.

        Raises:
            DecodeError: llama.cpp refused or failed the batch; the cache may hold some of its tokens.
        """
        n_tokens = 0
        rows = []
        for chunk in chunks:
            end = n_tokens + len(chunk.tokens)
            self._tokens[n_tokens:end] = chunk.tokens
            self._positions[n_tokens:end] = np.arange(chunk.position, chunk.position + len(chunk.tokens))
            self._sequence_ids[n_tokens:end] = chunk.sequence_id
            self._wants_logits[n_tokens:end] = 0
            self._wants_logits[end - chunk.n_outputs : end] = 1
            rows.append(end - 1 if chunk.n_outputs else -1)
            n_tokens = end
        self._batch.n_tokens = n_tokens
        self._library.take_errors()
        status = native.llama_decode(self.handle, self._batch)
        if status != 0:
            raise DecodeError(f"llama_decode failed with {status}: {self._library.take_errors() or 'no reason given'}")
        # A GPU goes on after llama_decode: the batch's time would be another's, and its lanes still in use.
        self.synchronize()
        return rows

    def synchronize(self) -> None:
        """Wait until nothing of an earlier batch is still being computed."""
        native.llama_synchronize(self.handle)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """A copy of the logits at ``row`` of the last batch: float32 ``[n_vocab]``."""
        return self.logits_view(row).copy()

    def logits_view(self, row: int) -> npt.NDArray[np.float32]:
        """The logits at ``row`` of the last batch where llama.cpp has them: float32 ``[n_vocab]``, until the next."""
        pointer = native.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def remove(self, sequence_id: int, start: int = 0) -> None:
        """Forget the tokens of a sequence from position ``start`` on."""
        native.llama_memory_seq_rm(self._memory, sequence_id, start, -1)

    def share(self, source_id: int, target_id: int, n_tokens: int) -> None:
        """Let ``target_id`` hold the first ``n_tokens`` of ``source_id`` too; no cell is copied."""
        native.llama_memory_seq_cp(self._memory, source_id, target_id, 0, n_tokens)

    def save_state(self, sequence_id: int) -> bytes:
        """A sequence's keys and values, in llama.cpp's own form; the id is one of those in batches."""
        size = native.llama_state_seq_get_size(self.handle, sequence_id)
        buffer = (ctypes.c_uint8 * size)()
        n_written = native.llama_state_seq_get_data(self.handle, buffer, size, sequence_id)
        return bytes(memoryview(buffer)[:n_written])

    def load_state(self, sequence_id: int, state: bytes) -> int:
        """Put saved keys and values under an empty sequence id; how many tokens it holds now, 0 if refused."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not native.llama_state_seq_set_data(self.handle, buffer, len(state), sequence_id):
            return 0
        return int(native.llama_memory_seq_pos_max(self._memory, sequence_id)) + 1
