"""From a grid to predictions."""
