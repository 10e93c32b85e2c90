"""What happened, as values; the log and the metrics that are made of it."""
