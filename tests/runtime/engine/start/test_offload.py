"""Layers on devices: as many as fit, with all that belongs to them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from convert.gguf.header import read_header
from runtime.config import EngineSettings
from runtime.engine.scheduler import EngineLimits
from runtime.engine.start.limits import limits_of
from runtime.engine.start.offload import place, with_fewer_layers
from runtime.errors import ConfigError, ModelLoadError
from runtime.llama.devices import Device, Placement

GIB = 1 << 30
N_CTX_TRAIN = 512


def device(free_bytes: int, name: str = "CUDA0") -> Device:
    """A card with this much free memory."""
    return Device(name, "a card", "CUDA", False, free_bytes, 2 * free_bytes, 1)


def placed(path: Path, *free_bytes: int, has_backend: bool = True, **settings: Any) -> Placement:
    """Where a model goes on cards with this much memory each."""
    engine = EngineSettings(**settings)
    devices = [device(n, f"CUDA{number}") for number, n in enumerate(free_bytes)]
    return place(engine, read_header(path), limits_of(engine, N_CTX_TRAIN), devices, has_backend=has_backend)


def test_with_room_everything_goes_to_the_device(tiny_model: Path) -> None:
    """The tiny model has two layers, and its head counts as one more."""
    for asked in ("auto", "all", "99"):
        assert placed(tiny_model, GIB, gpu_layers=asked).n_layers == 3
    assert placed(tiny_model, GIB, gpu_layers="2").n_layers == 2


def test_without_a_device_auto_means_the_processor(tiny_model: Path) -> None:
    """No device, or none with memory: the placement is on the processor and says so."""
    assert placed(tiny_model) == placed(tiny_model, GIB, gpu_layers="0") == Placement()
    assert str(placed(tiny_model, 0)) == "CPU"


@pytest.mark.parametrize("asked", ["1", "99", "all"])
def test_layers_for_a_device_that_is_not_there_are_refused(tiny_model: Path, asked: str) -> None:
    """The message says whether the build or the machine lacks it, and what to do."""
    with pytest.raises(ModelLoadError, match=r"built without a backend.*scripts/setup --cuda"):
        placed(tiny_model, gpu_layers=asked, has_backend=False)
    with pytest.raises(ModelLoadError, match="finds none on this machine; check its driver"):
        placed(tiny_model, gpu_layers=asked)
    with pytest.raises(ModelLoadError, match="--device none"):
        placed(tiny_model, gpu_layers=asked, device="none")


@pytest.mark.parametrize("asked", ["auto", "all", "3"])
def test_too_little_memory_means_fewer_layers_and_a_warning(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    """What does not fit stays on the processor; the log names the device and both numbers."""
    with caplog.at_level(logging.WARNING, "gemlane.engine"):
        placement = placed(tiny_model, 12 << 20, gpu_layers=asked)
    assert 0 < placement.n_layers < 3
    assert caplog.messages == [
        f"CUDA0 has room for {placement.n_layers} of 3 layers with their cache and lanes; "
        "the others stay on the processor"
    ]


@pytest.mark.parametrize("larger", [{"kv_cells": 100_000}, {"lanes": 200}, {"max_lora_rank": 1024}, {"kv_type": "f32"}])
def test_cache_and_lanes_count(tiny_model: Path, larger: dict[str, Any]) -> None:
    """With more cache, lanes or rank for each layer, fewer layers fit."""
    room = 20 << 20
    assert placed(tiny_model, room, **larger).n_layers < placed(tiny_model, room).n_layers


def test_the_cache_counts_the_cells_that_are_made(tiny_model: Path) -> None:
    """One sequence of 512 tokens has 512 cells, not the 4096 of eight: more layers fit."""
    room = 12 << 20
    assert limits_of(EngineSettings(parallel=1), N_CTX_TRAIN).n_kv_cells == 512
    assert limits_of(EngineSettings(parallel=8), N_CTX_TRAIN).n_kv_cells == 4096
    assert placed(tiny_model, room, parallel=1).n_layers > placed(tiny_model, room, parallel=8).n_layers
    assert placed(tiny_model, room, kv_offload="off").n_layers > placed(tiny_model, room).n_layers


def test_grouped_batches_have_no_lanes(tiny_model: Path) -> None:
    """Without lanes there is room for more layers."""
    room = 8 << 20
    grouped = placed(tiny_model, room, lanes=200, adapter_batching="grouped")
    assert grouped.n_layers > placed(tiny_model, room, lanes=200).n_layers


def test_several_devices_add_up_unless_a_split_says_otherwise(tiny_model: Path) -> None:
    """With shares, the device that is full first decides."""
    small = 12 << 20
    assert placed(tiny_model, small).n_layers < placed(tiny_model, small, small).n_layers
    split = placed(tiny_model, small, GIB, tensor_split="1,3")
    assert split.tensor_split == (0.25, 0.75)
    assert split.n_layers > placed(tiny_model, small, GIB, tensor_split="1,0").n_layers
    assert placed(tiny_model, GIB, GIB, tensor_split="2").tensor_split == (1.0, 0.0)
    with pytest.raises(ConfigError, match="3 devices; 2 are used"):
        placed(tiny_model, GIB, GIB, tensor_split="1,1,1")


def test_a_placement_names_its_devices() -> None:
    """``/health`` and the greeting show the layers and the devices of a placement."""
    both = Placement(19, (device(1), device(1, "CUDA1")))
    assert str(both) == "CUDA0 (a card) + CUDA1 (a card), 19 layers"


def test_fewer_layers_end_at_none() -> None:
    """Each try asks for three quarters; the last is the processor alone."""
    tries = [Placement(3, (device(1),))]
    while tries[-1].n_layers:
        tries.append(with_fewer_layers(tries[-1]))
    assert [placement.n_layers for placement in tries] == [3, 2, 1, 0]
    assert tries[-1] == Placement()


def test_limits_are_those_of_the_settings() -> None:
    """A longer context than the model was trained for is cut."""
    assert isinstance(limits_of(EngineSettings(n_ctx=9999), N_CTX_TRAIN), EngineLimits)
    assert limits_of(EngineSettings(n_ctx=9999), N_CTX_TRAIN).n_ctx == N_CTX_TRAIN
