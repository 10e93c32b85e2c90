"""llama.cpp: the only package that imports ``llama_cpp`` or ``ctypes``. It knows no request, no queue and no pipe."""
