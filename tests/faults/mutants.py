"""GGUF files with something wrong in them, made from a sound one by a seeded generator, and what llama.cpp does."""

from __future__ import annotations

import os
import queue
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from convert.gguf.header import ValueType
from tests.end_to_end.serving import environment

LOAD_TIMEOUT_S = 20
NUMBERS = (0, 1, 2, 3, 7, 8, 31, 255, 65_535, 100_000, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)
SUFFIXES = (
    *("vocab_size", "context_length", "embedding_length", "embedding_length_out", "block_count", "pooling_type"),
    *("leading_dense_block_count", "feed_forward_length", "use_parallel_residual", "expert_count", "expert_used_count"),
    *("expert_shared_count", "expert_weights_scale", "nextn_predict_layers", "n_deepstack_layers", "logit_scale"),
    *("attn_logit_softcapping", "final_logit_softcapping", "residual_scale", "embedding_scale", "token_shift_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.max_alibi_bias", "attention.clamp_kqv"),
    *("attention.key_length", "attention.value_length", "attention.layer_norm_epsilon", "attention.causal"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern"),
    *("attention.scale", "attention.key_length_swa", "attention.shared_kv_layers", "attention.recurrent_layers"),
    *("rope.dimension_count", "rope.dimension_sections", "rope.freq_base", "rope.scale_linear", "rope.scaling.type"),
    *("rope.scaling.factor", "rope.scaling.alpha", "rope.scaling.attn_factor", "rope.scaling.finetuned"),
    *("rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor", "ssm.conv_kernel", "wkv.head_size"),
    *("classifier.output_labels", "decoder_start_token_id", "expert_group_count", "expert_gating_func"),
)
"""Keys that llama.cpp reads for any architecture. Source: llama-arch.cpp, LLM_KV_NAMES."""
OTHER_KEYS = (
    *("general.type", "general.architecture", "general.alignment", "general.file_type", "general.name"),
    *("general.tensor_extra.name", "split.no", "split.count", "split.tensors.count", "tokenizer.ggml.pre"),
    *("tokenizer.ggml.model", "tokenizer.ggml.token_type_count", "tokenizer.ggml.eot_token_id"),
    *("tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.seperator_token_id"),
    *("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.suppress_tokens"),
    *("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces", "adapter.type"),
    *("adapter.lora.alpha", "adapter.lora.task_name", "adapter.alora.invocation_tokens", "tokenizer.chat_template"),
)


def mutant(sound: bytes, n_header: int, seed: int) -> bytes:
    """One file that differs from ``sound`` in its header (its first ``n_header`` bytes) or its length."""
    rng = random.Random(seed)
    data = bytearray(sound)
    kind = rng.choice(("bits", "bits", "number", "number", "key", "key", "key", "text", "cut", "swap"))
    position = rng.randrange(8, min(n_header, rng.choice((800, n_header))))
    match kind:
        case "bits":
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[rng.randrange(min(n_header, rng.choice((800, n_header))))] ^= 1 << rng.randrange(8)
        case "number":
            layout = rng.choice(("<I", "<Q", "<f"))
            number = rng.choice(NUMBERS)
            value = float(number) if layout == "<f" else number & (2**32 - 1 if layout == "<I" else 2**64 - 1)
            struct.pack_into(layout, data, position, value)
        case "key":
            return with_key(sound, rng)
        case "text":
            data[position : position + 4] = rng.choice((b"\0\0\0\0", b"\xff\xfe\xfd\xfc", b"<0x0", b"blk."))
        case "cut":
            del data[rng.randrange(len(data)) :]
        case "swap":
            other = rng.randrange(8, n_header - 64)
            data[position : position + 32], data[other : other + 32] = (
                data[other : other + 32],
                data[position : position + 32],
            )
    return bytes(data)


def with_key(sound: bytes, rng: random.Random) -> bytes:
    """The file with one more key, which may be there already; a filler keeps the tensors where they have to be."""
    name = rng.choice((*(f"gemma.{suffix}" for suffix in SUFFIXES), *OTHER_KEYS))
    entry = _entry(name, *_value(rng))
    filler = _entry("general.x", ValueType.STRING, struct.pack("<Q", 0))
    n_more = -(len(entry) + len(filler)) % 32
    filler = _entry("general.x", ValueType.STRING, struct.pack("<Q", n_more) + b"x" * n_more)
    (n_keys,) = struct.unpack_from("<Q", sound, 16)
    return sound[:16] + struct.pack("<Q", n_keys + 2) + entry + filler + sound[24:]


def _value(rng: random.Random) -> tuple[ValueType, bytes]:
    number = rng.choice(NUMBERS)
    return rng.choice(
        (
            (ValueType.UINT32, struct.pack("<I", number & (2**32 - 1))),
            (ValueType.UINT32, struct.pack("<I", number & 7)),
            (ValueType.UINT64, struct.pack("<Q", number)),
            (ValueType.FLOAT32, struct.pack("<f", rng.choice((0.0, 1.0, float("nan"), float("inf"), -1.0, 1e30)))),
            (ValueType.BOOL, bytes([rng.randrange(3)])),
            (ValueType.STRING, struct.pack("<Q", 4) + rng.choice((b"none", b"yarn", b"lora", b"a\0bc"))),
            (ValueType.ARRAY, struct.pack("<IQ", ValueType.UINT32, 2) + struct.pack("<II", 0, number & (2**32 - 1))),
        )
    )


def _entry(name: str, kind: ValueType, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


class NativeLoader:
    """A process with llama.cpp, started again whenever a file ends it."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = base
        self._process: subprocess.Popen[str] | None = None

    def try_file(self, path: Path) -> str:
        """``loaded``, ``refused`` with llama.cpp's words, or how the file ended or hung the process."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
        try:
            answer = answers.get(timeout=LOAD_TIMEOUT_S).strip()
        except queue.Empty:
            answer = ""
        if answer:
            return answer
        try:
            return f"ended by {process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        more = [str(self._base)] if self._base else []
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.native_loader", *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment() | {"GGML_NO_BACKTRACE": "1"},
        )


def seeds() -> Iterator[int]:
    """As many as ``GEMLANE_MUTANTS`` says; few enough for every run of the tests otherwise."""
    yield from range(int(os.environ.get("GEMLANE_MUTANTS", "1000")))
