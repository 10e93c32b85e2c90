"""The layout of tensors is proven before it is used, and a wrong one is found."""

from __future__ import annotations

import ctypes

import pytest

from runtime.llama import ggml
from runtime.llama.lanes import tensor
from runtime.llama.lanes.tensor import LayoutError, Tensor, prove_layout


def test_the_layout_is_that_of_the_pinned_library() -> None:
    """The pinned library has the layout that is declared, and a number for every operation."""
    ops = prove_layout()
    numbers = {ops.none, ops.mul_mat, ops.mul_mat_id, ops.scale, ops.add}
    assert len(numbers) == 5
    assert ggml.op_name(ops.mul_mat_id) == b"MUL_MAT_ID"


def swapped(one: str, other: str) -> type[ctypes.Structure]:
    """The structure with two fields in each other's place."""
    names = [name for name, _ in Tensor._fields_]
    kinds = dict(Tensor._fields_)
    first, second = names.index(one), names.index(other)
    names[first], names[second] = names[second], names[first]
    return type("Swapped", (ctypes.Structure,), {"_fields_": tuple((name, kinds[name]) for name in names)})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ne", "nb"),
        ("op", "flags"),
        ("view_src", "view_offs"),
        ("view_src", "data"),
        ("buffer", "data"),
        ("op", "type"),
    ],
)
def test_fields_in_the_wrong_place_are_found(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    """Fields in the wrong place are found before anything is written through them."""
    monkeypatch.setattr(tensor, "Tensor", swapped(one, other))
    with pytest.raises(LayoutError):
        prove_layout()


def test_another_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose tensors have another size is refused."""
    monkeypatch.setattr(ggml, "tensor_overhead", lambda: 376)
    with pytest.raises(LayoutError, match="376"):
        prove_layout()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"blk.0.ffn_down.weight.lora_a", "blk.0.ffn_down.weight.lora_a"),
        (b"CUDA0#blk.0.ffn_down.weight.lora_a#0", "blk.0.ffn_down.weight.lora_a"),
        (b"RPC0[127.0.0.1:50052]#blk.11.attn_q.weight.lora_b#3", "blk.11.attn_q.weight.lora_b"),
        (b"a#b", "a#b"),
        (b"", ""),
    ],
)
def test_a_copy_on_another_backend_has_the_name_of_its_original(name: bytes, expected: str) -> None:
    """The scheduler calls a copy ``BACKEND#name#number``."""
    context = ggml.new_context(2)
    assert context
    address = ggml.new_tensor_2d(context, 0, 3, 5)
    ggml.set_name(address, name)
    assert tensor.name_of(address) == expected
    ggml.free(context)
