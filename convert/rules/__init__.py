"""What a GGUF file must keep before llama.cpp may see it: the shapes and names of a Gemma and of its adapters."""
