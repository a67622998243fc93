"""A study's model on a new image, and its answer as objects that a PACS takes."""
