"""llama.cpp as a whole, in a child process: logits, and the comparison of two models."""
