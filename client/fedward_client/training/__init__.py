"""Training with a patient-level guarantee."""
