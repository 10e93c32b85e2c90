"""What a bundle is for: platform, Python, and the processor features that its llama.cpp was built with."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written to ``bundle.env`` as lines of ``KEY=value``."""

    version: str
    python: str
    cpu_flags: tuple[str, ...]
    llama_cpp: str
    system: str = platform.system()
    machine: str = platform.machine()

    def render(self) -> str:
        """The lines."""
        values = {
            "VERSION": self.version,
            "SYSTEM": self.system,
            "MACHINE": self.machine,
            "PYTHON": self.python,
            "CPU_FLAGS": " ".join(self.cpu_flags),
            "LLAMA_CPP": self.llama_cpp,
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())
