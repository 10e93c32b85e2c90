"""From what a client says to what the model reads."""
