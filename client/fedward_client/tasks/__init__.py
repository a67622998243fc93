"""One module per kind of learning task."""
