"""Patient-level DP-SGD: the engine, its back ends and the model check (no import has effects)."""
