"""What both sides of a federation agree on: values, mathematics and protocols."""
