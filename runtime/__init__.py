"""Serve one Gemma with any number of LoRA adapters, chosen per request."""
