"""Networks of the learned defenses."""
