"""Loaders of data sets, built-in grids, the paper's numbers, model cards and weights. This package downloads nothing.

`open.open_dataset` returns the `Dataset` for a registered name, a folder or a list of labels. `image_hashes` hashes its
pixels and reads its batches. A registered data set is one file, such as `photos20.py`.
"""
