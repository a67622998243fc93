"""A whole federation on this machine, from the same programs and files as a hospital's."""
