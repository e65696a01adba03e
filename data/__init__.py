"""Dataset loaders, built-in grids and the paper's printed numbers; never downloads, never caches.

`open.open_dataset` is the way in: a registered name, a folder or a CSV becomes a `Dataset`.
`fingerprints` names its pixels and reads its batches. An entry is one file: `photos20.py`.
"""
