"""What the paper concludes, and tests of it."""
