"""Tokens to text: whole characters, stop strings, the answer of one sequence."""
