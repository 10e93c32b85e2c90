"""The start of an engine: the file is checked, the model loaded, the cache sized, the lanes proven."""
