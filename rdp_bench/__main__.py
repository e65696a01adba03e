"""`python -m rdp_bench` is `rdp-bench`."""

from rdp_bench.cli.main import main

main()
