"""Gemma checkpoints and LoRA adapters to GGUF: numpy and gguf, no torch, no network."""
