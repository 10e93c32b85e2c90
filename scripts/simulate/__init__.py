"""A thousand replicas and a hundred thousand adapters, simulated from what one replica was measured to do."""
