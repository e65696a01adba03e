"""Arithmetic that networks share: convolutions and resizing whose results do not depend on the number of threads."""
