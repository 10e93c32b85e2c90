"""LoRA adapters as PEFT, MLX and GGUF store them, and what becomes of each: a GGUF adapter, or a merged base."""
