"""One defense per file: a frozen dataclass registered with `@defense`. Files that start with `_` hold shared code."""
