"""Lanes on stock llama.cpp: the bank of weights, and the graph whose LoRA nodes are rewritten to read it."""
