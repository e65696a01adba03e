"""The audit of a defense: grids that cover what an attacker may know, checks of the attacks, and a verdict."""
