"""`python -m rdp_bench` is `rdp-bench`."""

from rdp_bench.cli import main

main()
