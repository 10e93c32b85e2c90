"""Each adapter file that would kill or mislead llama.cpp is refused by name before llama.cpp sees it."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from convert.errors import RejectedAdapter
from convert.gguf.header import GgufHeader
from convert.rules.check import validate_adapter
from tests.convert.gguf_bytes import (
    ARRAY,
    F32,
    F64,
    I32,
    STRING,
    U32,
    Gguf,
    Tensor,
    adapter,
    entry,
    f32,
    pair,
    string,
    text,
)

ALPHA = "adapter.lora.alpha"
Q = "blk.0.attn_q.weight"
F16_NAN = np.array([np.nan], np.float16).tobytes()


def raw_keys(**replaced: bytes) -> Gguf:
    """Return an adapter with identifying keys replaced by raw entries; empty ones are left out."""
    keys = {
        "architecture": string("general.architecture", "gemma"),
        "kind": string("general.type", "adapter"),
        "type": string("adapter.type", "lora"),
    }
    return Gguf([raw for raw in (keys | replaced).values() if raw], pair())


def invocation(*tokens: int, item_type: int = U32) -> bytes:
    """Return the entry that makes an adapter an aLoRA."""
    raw = struct.pack(f"<IQ{len(tokens)}I", item_type, len(tokens), *tokens)
    return entry("adapter.alora.invocation_tokens", ARRAY, raw)


def damaged(kind: int, n_values: int, at: int, size_bytes: int) -> list[Tensor]:
    """Return a pair whose A has a NaN scale in its last block."""
    data = bytearray(size_bytes)
    data[at : at + 2] = F16_NAN
    return [Tensor(f"{Q}.lora_a", (256, n_values // 256), kind, bytes(data)), pair(rank=n_values // 256)[1]]


CASES = {
    "general.type missing": (raw_keys(kind=b""), "general.type"),
    "general.type model": (adapter(*pair(), kind="model"), "general.type is 'model'"),
    "general.type a number": (
        raw_keys(kind=entry("general.type", U32, bytes(4))),
        "general.type must be the string",
    ),
    "adapter.type a number": (
        raw_keys(type=entry("adapter.type", U32, bytes(4))),
        "adapter.type must be the string",
    ),
    "adapter.type other": (adapter(*pair(), type="control_vector"), "adapter.type is 'control_vector'"),
    "architecture a number": (
        raw_keys(architecture=entry("general.architecture", U32, bytes(4))),
        "general.architecture must be the string",
    ),
    "architecture other": (adapter(*pair(), arch="gemma2"), "general.architecture is 'gemma2'"),
    "alpha u32": (adapter(*pair(), alpha=entry(ALPHA, U32, struct.pack("<I", 16))), "has type UINT32"),
    "alpha f64": (adapter(*pair(), alpha=entry(ALPHA, F64, struct.pack("<d", 16))), "has type FLOAT64"),
    "alpha text": (adapter(*pair(), alpha=entry(ALPHA, STRING, text("16"))), "has type STRING"),
    "alpha array": (
        adapter(*pair(), alpha=entry(ALPHA, ARRAY, struct.pack("<IQf", F32, 1, 16.0))),
        "has type ARRAY",
    ),
    "alpha NaN": (adapter(*pair(), alpha=f32(ALPHA, math.nan)), "alpha is nan"),
    "alpha infinite": (adapter(*pair(), alpha=f32(ALPHA, math.inf)), "alpha is inf"),
    "alpha 0": (adapter(*pair(), alpha=f32(ALPHA, 0.0)), "alpha is 0.0"),
    "alpha negative": (adapter(*pair(), alpha=f32(ALPHA, -1.0)), "alpha is -1.0"),
    "aLoRA of an unknown kind": (
        adapter(*pair(), alpha=string("adapter.alora.invocation_string", "now")),
        "adapter.alora.invocation_string: an activated LoRA \\(aLoRA\\) of an unknown kind",
    ),
    "invocation tokens I32": (adapter(*pair(), alpha=invocation(5, item_type=I32)), "must be an array of UINT32"),
    "invocation tokens a number": (
        adapter(*pair(), alpha=entry("adapter.alora.invocation_tokens", U32, bytes(4))),
        "must be an array of UINT32",
    ),
    "no invocation tokens": (adapter(*pair(), alpha=invocation()), "has 0 tokens instead of 1 to 256"),
    "257 invocation tokens": (adapter(*pair(), alpha=invocation(*range(257))), "has 257 tokens"),
    "5,000 invocation tokens": (adapter(*pair(), alpha=invocation(*[1] * 5000)), "has 5000 tokens"),
    "invocation token beyond the base": (
        adapter(*pair(), alpha=invocation(7, 1024)),
        "holds 1024, but the base has 1024 tokens",
    ),
    "invocation token 2^32 - 1": (adapter(*pair(), alpha=invocation(2**32 - 1)), "holds 4294967295"),
    "split": (adapter(*pair(), alpha=entry("split.count", 2, struct.pack("<H", 2))), "split"),
    "no tensors": (adapter(), "no tensors"),
    "half a pair": (adapter(pair()[0]), "only one of lora_a and lora_b"),
    "unknown suffix": (
        adapter(*pair(), Tensor("blk.0.attn_q.bias", (256,))),
        "neither a lora_a nor a lora_b",
    ),
    "norm vector": (
        adapter(*pair(), Tensor("blk.0.attn_norm.weight", (256,))),
        "neither a lora_a nor a lora_b",
    ),
    "pair on a norm": (adapter(*pair("blk.0.attn_norm.weight", 256, 1)), "not one of the weights"),
    "pair on the embedding": (adapter(*pair("token_embd.weight", 256, 1024)), "not one of the weights"),
    "pair on the head": (adapter(*pair("output.weight", 256, 1024)), "not one of the weights"),
    "layer beyond the base": (adapter(*pair("blk.2.attn_q.weight")), "does not exist in the base"),
    "wider base": (adapter(*pair(n_in=2048, n_out=2048)), "made for a weight of"),
    "three dimensions": (
        adapter(Tensor(f"{Q}.lora_a", (256, 4, 2)), Tensor(f"{Q}.lora_b", (4, 256, 2))),
        "3 dimensions",
    ),
    "one dimension": (
        adapter(Tensor(f"{Q}.lora_a", (256,)), Tensor(f"{Q}.lora_b", (1, 256))),
        "1 dimensions",
    ),
    "ranks differ": (adapter(pair(rank=4)[0], pair(rank=8)[1]), "rank 4 in lora_a but 8 in lora_b"),
    "rank 100,000": (
        adapter(*(Tensor(t.name, t.ne, 1, bytes(2 * t.ne[0] * t.ne[1])) for t in pair(rank=100_000))),
        "at most 4096",
    ),
    "I32 weights": (adapter(Tensor(f"{Q}.lora_a", (256, 4), 26), pair()[1]), "type I32"),
    "I8 weights": (adapter(Tensor(f"{Q}.lora_a", (256, 4), 24, bytes(1024)), pair()[1]), "type I8"),
    "F64 weights": (adapter(Tensor(f"{Q}.lora_a", (256, 4), 28, bytes(8192)), pair()[1]), "type F64"),
    "Q8_K weights": (adapter(Tensor(f"{Q}.lora_a", (256, 4), 15, bytes(4 * 292)), pair()[1]), "type Q8_K"),
    "NaN": (
        adapter(Tensor(f"{Q}.lora_a", (256, 4), data=struct.pack("<f", math.nan) * 1024), pair()[1]),
        "'blk.0.attn_q.weight.lora_a' holds NaN",
    ),
    "infinity in F16": (
        adapter(Tensor(f"{Q}.lora_a", (256, 4), 1, struct.pack("<e", math.inf) * 1024), pair()[1]),
        "holds NaN or infinity",
    ),
    "infinity in BF16": (
        adapter(Tensor(f"{Q}.lora_a", (256, 4), 30, b"\x80\x7f" * 1024), pair()[1]),
        "holds NaN or infinity",
    ),
    "NaN scale in Q8_0": (adapter(*damaged(8, 256, 7 * 34, 8 * 34)), "holds NaN or infinity"),
    "NaN scale in Q4_0": (adapter(*damaged(2, 256, 7 * 18, 8 * 18)), "holds NaN or infinity"),
    "NaN scale in Q4_K": (adapter(*damaged(12, 512, 144 + 2, 288)), "holds NaN or infinity"),
    "NaN scale in Q6_K": (adapter(*damaged(14, 512, 210 + 208, 420)), "holds NaN or infinity"),
    "NaN scale in Q2_K": (adapter(*damaged(10, 512, 84 + 80, 168)), "holds NaN or infinity"),
    "NaN scale in Q3_K": (adapter(*damaged(11, 512, 110 + 108, 220)), "holds NaN or infinity"),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses_by_name(case: str, tmp_path: Path, base_header: GgufHeader) -> None:
    """The message is one line and names the file and the key, tensor or rule."""
    gguf, words = CASES[case]
    path = tmp_path / "adapter.gguf"
    path.write_bytes(gguf.bytes())
    with pytest.raises(RejectedAdapter, match=words) as caught:
        validate_adapter(path, base_header)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_adapter_is_summed_up(tmp_path: Path, base_header: GgufHeader) -> None:
    """Pairs, the highest rank, alpha, modules, layers and types; trailing bytes do no harm."""
    gguf = adapter(*pair(rank=4), *pair("blk.1.ffn_down.weight", 512, 256, 9))
    path = tmp_path / "adapter.gguf"
    path.write_bytes(gguf.bytes() + b"more")
    summary = validate_adapter(path, base_header)
    assert (summary.n_pairs, summary.max_rank, summary.alpha) == (2, 9, 16.0)
    assert summary.target_modules == ("attn_q", "ffn_down")
    assert summary.layers == (0, 1)
    assert summary.types == ("F32",)
    assert summary.tensor_bytes == 4 * (4 * 512 + 9 * 768)


def test_alpha_may_be_absent(tmp_path: Path, base_header: GgufHeader) -> None:
    """An adapter without alpha is accepted: its factor is in B, and only the user's scale applies."""
    path = tmp_path / "adapter.gguf"
    path.write_bytes(adapter(*pair(), alpha=string("general.name", "no alpha")).bytes())
    assert validate_adapter(path, base_header).alpha is None


def test_an_alora_is_summed_up_with_its_invocation_tokens(tmp_path: Path, base_header: GgufHeader) -> None:
    """The summary holds the invocation tokens in their order; that of a plain LoRA holds none."""
    path = tmp_path / "adapter.gguf"
    path.write_bytes(adapter(*pair(), alpha=invocation(106, 1023, 0)).bytes())
    assert validate_adapter(path, base_header).invocation_tokens == (106, 1023, 0)
    path.write_bytes(adapter(*pair()).bytes())
    assert validate_adapter(path, base_header).invocation_tokens == ()
