"""How many layers a GPU has room for. Pure arithmetic on the header's numbers."""

from __future__ import annotations

from convert.gguf.header import GgufHeader
from convert.rules.model import check_model
from runtime.config import EngineSettings
from runtime.llama.lanes.template import lora_shapes

# Of a GPU's free memory, what weights, cache and lanes may take; the rest is for compute buffers and other programs.
_GPU_PART = 0.85
# Bytes a value takes, scales of blocks included.
_VALUE_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
_DEFAULT_KV_CELLS = 8192


def n_gpu_layers(settings: EngineSettings, header: GgufHeader, free_bytes: int) -> int:
    """What the user asked for, or as many layers as fit into ``free_bytes`` with their cache and their lanes.

    The output head counts as one layer more than the model has (llama.cpp, ``n_gpu_layers``).
    """
    if settings.gpu_layers != "auto":
        return int(settings.gpu_layers)
    sizes = check_model(header).hyperparameters
    n_kv_values = 2 * (settings.kv_cells or _DEFAULT_KV_CELLS) * sizes.n_kv_heads * sizes.head_dim
    n_lane_values = 0
    if settings.adapter_batching != "grouped":
        n_per_rank = sum(n_in + n_out for n_in, n_out in lora_shapes(header).values()) // sizes.n_layers
        n_lane_values = n_per_rank * settings.max_lora_rank * (settings.lanes + 1)
    layer_bytes = (
        header.size_bytes / (sizes.n_layers + 1)
        + n_kv_values * _VALUE_BYTES[settings.kv_type]
        + n_lane_values * _VALUE_BYTES[settings.lane_type]
    )
    return min(int(free_bytes * _GPU_PART / layer_bytes), sizes.n_layers + 1)
