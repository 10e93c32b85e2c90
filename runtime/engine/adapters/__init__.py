"""How a batch runs under its adapters: mixed in lanes, or grouped by adapter."""
