"""Layers on the GPU: as many as fit, with all that belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convert.gguf.header import read_header
from runtime.config import EngineSettings
from runtime.engine.start.offload import n_gpu_layers

GIB = 1 << 30


def test_a_number_is_taken_as_it_is(tiny_model: Path) -> None:
    """Also where there is no GPU: llama.cpp ignores it there."""
    assert n_gpu_layers(EngineSettings(gpu_layers="7"), read_header(tiny_model), 0) == 7


def test_without_memory_nothing_goes_to_the_gpu(tiny_model: Path) -> None:
    """Nor without a GPU."""
    assert n_gpu_layers(EngineSettings(), read_header(tiny_model), 0) == 0


def test_with_room_everything_does(tiny_model: Path) -> None:
    """Two layers and the head."""
    assert n_gpu_layers(EngineSettings(), read_header(tiny_model), GIB) == 3


@pytest.mark.parametrize("larger", [{"kv_cells": 100_000}, {"lanes": 200}, {"max_lora_rank": 1024}, {"kv_type": "f32"}])
def test_cache_and_lanes_count(tiny_model: Path, larger: dict[str, Any]) -> None:
    """What each layer brings along: with more of it fewer fit."""
    header = read_header(tiny_model)
    room = 16 << 20
    assert n_gpu_layers(EngineSettings(**larger), header, room) < n_gpu_layers(EngineSettings(), header, room)


def test_grouped_batches_have_no_lanes(tiny_model: Path) -> None:
    """They leave room for layers."""
    header, room = read_header(tiny_model), 8 << 20
    grouped = EngineSettings(lanes=200, adapter_batching="grouped")
    assert n_gpu_layers(grouped, header, room) > n_gpu_layers(EngineSettings(lanes=200), header, room)
