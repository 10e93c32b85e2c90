"""llama.cpp in a process of its own: the logits of a model. Run as `python -m convert.native.llama`.

Only a child process loads llama.cpp whole, because it aborts on some inputs and loads every backend it has;
`convert.native.child` is the other side. One JSON request on standard input;
one JSON line and then raw float32 on what was standard output.

Source of the calls: llama.cpp include/llama.h, as of llama-cpp-python 0.3.36.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import numpy as np
from llama_cpp import llama_cpp as native

_F32: Final = 0  # ggml.h GGML_TYPE_F32
_NO_FLASH_ATTENTION: Final = 0  # llama.h: its F16 products would blur the comparison
_BATCH: Final = 512


def main() -> int:
    """Serve one request."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native chatter must not reach the answer
    request = json.load(sys.stdin)
    native.llama_backend_init()
    return _logits(request, out)


def _logits(request: dict[str, Any], out: BinaryIO) -> int:
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = False  # repacked weights differ in the last bits
    overrides = (native.llama_model_kv_override * 2)()  # the second, empty one ends the list
    overrides[0].tag, overrides[0].key = native.LLAMA_KV_OVERRIDE_TYPE_BOOL, b"tokenizer.ggml.add_space_prefix"
    parameters.kv_overrides = overrides  # false: files of spring 2024 leave it out, and llama.cpp's default is true
    model = native.llama_model_load_from_file(request["model"].encode(), parameters)
    if not model:
        return 1
    vocabulary = native.llama_model_get_vocab(model)
    n_vocab = native.llama_vocab_n_tokens(vocabulary)
    sequences = request.get("tokens") or [_tokenize(vocabulary, text) for text in request["texts"]]
    if any(not 0 <= token < n_vocab for tokens in sequences for token in tokens):
        print("error: the two models have different vocabularies", file=sys.stderr)
        return 1
    context = _context(model, max(map(len, sequences)), request["n_threads"])
    if not context or not _apply(model, context, request.get("adapter"), request.get("scale", 1.0)):
        return 1
    _answer(out, {"tokens": sequences, "n_vocab": n_vocab})
    for tokens in sequences:
        native.llama_memory_clear(native.llama_get_memory(context), True)  # noqa: FBT003 - C
        for first in range(0, len(tokens), _BATCH):
            if not _decode(context, tokens[first : first + _BATCH], n_vocab, out):
                return 1
    out.flush()
    return 0


def _tokenize(vocabulary: Any, text: str) -> list[int]:
    raw = text.encode()
    buffer = (native.llama_token * (len(raw) + 8))()
    n_tokens = native.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), True, True)  # noqa: FBT003 - C
    return list(buffer[:n_tokens])


def _context(model: Any, n_tokens: int, n_threads: int) -> Any:
    parameters = native.llama_context_default_params()
    parameters.n_ctx = max(n_tokens, 32)
    parameters.n_batch = parameters.n_ubatch = min(_BATCH, parameters.n_ctx)
    parameters.n_threads = parameters.n_threads_batch = n_threads
    parameters.type_k = parameters.type_v = _F32
    parameters.flash_attn_type = _NO_FLASH_ATTENTION
    parameters.no_perf = True
    return native.llama_init_from_model(model, parameters)


def _apply(model: Any, context: Any, path: str | None, scale: float) -> bool:
    if path is None:
        return True
    adapter = native.llama_adapter_lora_init(model, path.encode())
    if not adapter:
        return False
    handles = (native.llama_adapter_lora_p_ctypes * 1)(adapter)
    scales = (ctypes.c_float * 1)(scale)
    return bool(native.llama_set_adapters_lora(context, handles, 1, scales) == 0)


def _decode(context: Any, tokens: Sequence[int], n_vocab: int, out: BinaryIO) -> bool:
    """Decode a piece of a sequence and write the logits of each of its tokens."""
    position = native.llama_memory_seq_pos_max(native.llama_get_memory(context), 0) + 1
    batch = native.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if native.llama_decode(context, batch) != 0:
            return False
        for i in range(len(tokens)):
            row = np.ctypeslib.as_array(native.llama_get_logits_ith(context, i), (n_vocab,))
            out.write(row.astype(np.float32).tobytes())
    finally:
        native.llama_batch_free(batch)
    return True


def _answer(out: BinaryIO, head: dict[str, Any]) -> None:
    out.write(json.dumps(head).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
