"""The converter's command line."""
