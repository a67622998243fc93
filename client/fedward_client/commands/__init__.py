"""The commands of `fedward-client`, by who types them."""
