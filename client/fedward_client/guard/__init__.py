"""The guard: the one process of a site that owns policy, ledger, journal and keys."""
