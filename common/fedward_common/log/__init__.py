"""The audit log of each side."""
