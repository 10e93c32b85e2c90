"""Lookup decoding: drafts from a sequence's own tokens, verified in the batch that computes its next token."""
