"""Load on a running server, and how it answers: what ``gemlane bench`` sends and measures."""
