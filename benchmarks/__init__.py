"""How fast rdp-bench is, beside the nearest thing it can be compared with: `python -m benchmarks`."""
