"""The GGUF dialect: an adapter that is a GGUF file already; it is checked and stored as another type."""

from typing import Final

from convert.adapters.adapter import LoraAdapter
from convert.adapters.pair import LoraPair
from convert.gguf.header import GgufHeader
from convert.gguf.quantisers import Ggml
from convert.gguf.types import FLOATS
from convert.rules.adapter import BASE_NAME_KEY, AdapterSummary
from convert.tensors.gguf import GgufRows, OpenGguf

_A: Final = ".lora_a"
_B: Final = ".lora_b"


def read_gguf_adapter(file: OpenGguf, summary: AdapterSummary, ggml: Ggml) -> LoraAdapter:
    """Read a GGUF adapter that has passed the rules; the weights stay in `file`, which must stay open.

    An adapter without alpha is scaled by the user's scale alone: alpha / rank is 1.
    """
    header: GgufHeader = file.header
    pairs = {}
    for key in header.tensors:
        if key.endswith(_A):
            name = key.removesuffix(_A)
            a, b = GgufRows(file, key, ggml), GgufRows(file, name + _B, ggml)
            pairs[name] = LoraPair(a, b, float(a.shape[0]) if summary.alpha is None else summary.alpha)
    quantized = [one.type.name for one in header.tensors.values() if one.type not in FLOATS]
    warnings = (f"its weights are {quantized[0]} already; convert the original for less loss",) if quantized else ()
    return LoraAdapter(
        path=header.path,
        pairs=pairs,
        base_name=header.string(BASE_NAME_KEY),
        warnings=warnings,
        invocation_tokens=summary.invocation_tokens,
    )
