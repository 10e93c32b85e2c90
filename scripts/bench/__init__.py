"""Benchmarks: this server and llama-server, given the same work by the same client. See scripts/README.md."""
