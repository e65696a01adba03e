"""One defense a file: a frozen dataclass under `@defense`. Files that start with `_` hold shared arithmetic."""
