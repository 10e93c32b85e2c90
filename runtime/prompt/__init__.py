"""Prompts: a client's messages or text in the form that the model was trained on."""
