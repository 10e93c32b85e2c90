"""llama.cpp's log ends with the object that keeps it."""

import subprocess
import sys

PROGRAM = """
import gc
import llama_cpp.llama_cpp as native
from runtime.llama.library import Library

library = Library()
del library
gc.collect()
filler = [bytearray(100) for _ in range(10_000)]
for _ in range(50):
    assert native.llama_model_load_from_file(b"/nonexistent", native.llama_model_default_params()) is None
print("alive")
"""


def test_llama_cpp_may_log_after_its_library_object_is_gone() -> None:
    """A process whose `Library` was collected goes on when llama.cpp logs an error."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr
