"""A hospital's PACS: objects come from it, and what a model says of them goes back."""
