"""Measurements of replicas on Ray; each needs the extra ``gemlane[cluster]``."""
