"""Attacks: presets of one composable iteration, a grammar for new ones, and other libraries by adapter."""
