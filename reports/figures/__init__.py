"""Figures and the data they are drawn from."""
