"""Shared by all tests."""

# A user's plugin: loaded by `--plugin`, under its own rules, never by pytest looking for doctests.
collect_ignore = ["plugin"]
