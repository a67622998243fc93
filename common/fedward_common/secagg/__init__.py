"""Secure aggregation: the coordinator learns the sum over sites and nothing else (pure, no I/O)."""
