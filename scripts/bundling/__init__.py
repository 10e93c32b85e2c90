"""Makes the archive that carries gemlane to a machine without a network; see ``scripts/bundle``."""
