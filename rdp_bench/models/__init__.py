"""Networks as classifiers of images in [0, 1]."""
