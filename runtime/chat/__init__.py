"""OpenAI-shaped request bodies, which two dialects read."""
