"""Models: cards, networks as classifiers in pixel space, and a defense in front of a source."""
