"""Generated checkpoints have the names and shapes of real ones, and open as checkpoints."""

from pathlib import Path

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.rules.gemma import Hyperparameters, gguf_name
from scripts.make_checkpoint import N_VOCAB, SHAPES, shards, tensors, write_config, write_shard


@pytest.mark.parametrize(("name", "n_parameters"), [("2b", 2_506_172_416), ("7b", 8_537_680_896)])
def test_shapes_are_gemmas(name: str, n_parameters: int) -> None:
    """A generated checkpoint has every tensor of the architecture, and the parameter count of the real model."""
    shape = SHAPES[name]
    hyperparameters = Hyperparameters(
        shape["layers"], shape["width"], shape["ff"], shape["heads"], shape["kv_heads"], 256, N_VOCAB, 8192, 1e-6
    )
    made = tensors(shape)
    assert {gguf_name(key): value for key, value in made.items()} == hyperparameters.tensor_shapes()
    assert sum(int(np.prod(value)) for value in made.values()) == n_parameters
    assert [key for part in shards(made) for key in part] == list(made)


def test_a_small_one_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small generated checkpoint opens and its weights are finite."""
    monkeypatch.setattr("scripts.make_checkpoint.N_VOCAB", 1024)
    shape = {"layers": 1, "width": 64, "ff": 128, "heads": 1, "kv_heads": 1}
    block = np.full(1 << 24, 0x3F80, np.uint16)
    write_config(tmp_path, shape)
    write_shard(tmp_path / "model.safetensors", tensors(shape), block)
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.hyperparameters.n_layers == 1
        assert (checkpoint.tensors["blk.0.attn_q.weight"].read(0, 256) == 1.0).all()
