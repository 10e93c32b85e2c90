"""GGUF files: their types, their header, the writer, ggml's quantisers, and the search for NaN and infinity."""
