"""Cells, rows and runs as files."""
