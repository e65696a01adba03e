"""Weight files: search, safe reading, writing."""
