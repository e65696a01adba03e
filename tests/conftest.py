"""Shared by all tests."""

import signal

# A user's plugin: loaded by `--plugin`, under its own rules, never by pytest looking for doctests.
collect_ignore = ["plugin"]

# Started in the background by a shell, Python ignores Ctrl-C; tests that send it need the usual handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
