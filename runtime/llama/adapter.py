"""A LoRA adapter as llama.cpp itself loads and applies it: one set for a whole batch."""

from __future__ import annotations

from pathlib import Path

import llama_cpp.llama_cpp as native

from runtime.errors import InvalidAdapter
from runtime.llama.model import Model


class NativeAdapter:
    """A loaded GGUF adapter. Owns native memory: ``free`` it when no context has it set any more."""

    def __init__(self, model: Model, path: Path) -> None:
        """Load ``path``, whose header has been checked.

        Raises:
            InvalidAdapter: llama.cpp refused the file; the message has its reason.
        """
        model.library.take_errors()
        self.handle = native.llama_adapter_lora_init(model.handle, str(path).encode())
        if not self.handle:
            raise InvalidAdapter(f"llama.cpp cannot load the adapter: {model.library.take_errors()}")

    def free(self) -> None:
        """Give the native memory back."""
        native.llama_adapter_lora_free(self.handle)
        self.handle = None
