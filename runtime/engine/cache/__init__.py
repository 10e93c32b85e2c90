"""The key-value cache: who holds which cells, which prefixes are kept, and their copies on disk."""
