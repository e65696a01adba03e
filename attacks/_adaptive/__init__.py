"""The attacks of an adaptive evaluation: what they share, and the iteration of each. Imported when one is called."""
