"""A Hugging Face checkpoint folder: its configuration, its tensors and its tokenizer."""
