"""The encrypted channel between gateway and edge."""
