"""Weight files: found, read without running anything, written."""
