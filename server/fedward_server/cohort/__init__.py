"""A made-up cohort of several hospitals in the formats that hospitals have: `make-cohort`."""
