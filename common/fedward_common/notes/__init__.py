"""Clinical notes: what is taken out of them, and how the rest becomes numbers."""
