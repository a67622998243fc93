"""The commands of `fedward-server`, by who types them."""
