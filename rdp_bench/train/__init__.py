"""Training of the learned purifiers: one loop (`loop`), one file a recipe, photographs in, weights and a card out."""
