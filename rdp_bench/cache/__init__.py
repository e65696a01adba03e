"""Content-addressed artefacts on disk."""
