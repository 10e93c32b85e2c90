"""Tensors as rows of float32: read from safetensors and GGUF files, encoded as the bytes of a tensor type."""
