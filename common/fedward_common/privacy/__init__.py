"""Differential privacy: mechanisms as values, accounting, randomness."""
