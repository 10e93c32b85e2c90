"""Gemma checkpoints and LoRA adapters to GGUF: numpy and llama.cpp's own quantisers; no torch, no network."""
