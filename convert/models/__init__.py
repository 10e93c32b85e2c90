"""A base model's plan: which tensors and metadata are written, and which type each tensor gets."""
