"""Changes to the plan of a base model's GGUF, for files as other converters write them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.conversion.conversion import Options, planned_model
from convert.gguf.header import ValueType
from convert.gguf.types import GgmlType
from convert.gguf.writer import FilePlan, KeyValue, TensorPlan, write_gguf
from tests.tiny_gemma.files import BASE

Change = Callable[[FilePlan], FilePlan]
U32, STRING, ARRAY = ValueType.UINT32, ValueType.STRING, ValueType.ARRAY


def put(key: str, kind: ValueType, value: object) -> Change:
    """Replace or add a metadata entry."""

    def change(plan: FilePlan) -> FilePlan:
        kept = [entry for entry in plan.metadata if entry.key != key]
        return replace(plan, metadata=[*kept, KeyValue(key, kind, value)])  # type: ignore[arg-type]

    return change


def drop(key: str) -> Change:
    """Leave a metadata entry out."""
    return lambda plan: replace(plan, metadata=[entry for entry in plan.metadata if entry.key != key])


def retensor(change: Callable[[list[TensorPlan]], list[TensorPlan]]) -> Change:
    """Change the list of tensors."""
    return lambda plan: replace(plan, tensors=change(list(plan.tensors)))


def token(number: int, text: bytes) -> Change:
    """Replace one token's text."""

    def change(plan: FilePlan) -> FilePlan:
        entry = next(entry for entry in plan.metadata if entry.key == "tokenizer.ggml.tokens")
        tokens = list(entry.value)  # type: ignore[arg-type]
        tokens[number] = text
        return put(entry.key, ARRAY, tokens)(plan)

    return change


def filled(name: str, kind: GgmlType, shape: tuple[int, ...]) -> TensorPlan:
    """A tensor of zeros."""
    plan = TensorPlan(name, kind, shape, lambda: ())
    return replace(plan, chunks=lambda: [np.zeros(plan.size_bytes, np.uint8)])


def token_type(kind: int, *numbers: int) -> Change:
    """Give tokens another type."""

    def change(plan: FilePlan) -> FilePlan:
        entry = next(entry for entry in plan.metadata if entry.key == "tokenizer.ggml.token_type")
        types = np.array(entry.value, np.int32)
        types[list(numbers)] = kind
        return put(entry.key, ARRAY, types)(plan)

    return change


def write_base(path: Path, *changes: Change, type_name: str = "f32") -> Path:
    """Write the tiny Gemma as a GGUF with changes."""
    with planned_model(BASE, (), Options(type_name)) as conversion:
        plan = conversion.plan
        for change in changes:
            plan = change(plan)
        write_gguf(path, plan)
    return path
