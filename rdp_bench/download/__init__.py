"""Data sets from the network."""
