"""The daemon that owns policy, ledger, journal and keys."""
