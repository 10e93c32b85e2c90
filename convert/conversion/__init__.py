"""A conversion from its inputs to the finished file, with its record, its estimate and its progress."""
