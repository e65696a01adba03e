"""Options that several commands have."""

from pathlib import Path
from typing import Any

import click

DEFAULT_OUT = "rdp-bench-out"


class _Named(click.Path):
    """A path; an empty one, as from an unset shell variable, is refused: it would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; name a folder, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


out = click.option("--out", type=_Named(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Results folder.")
plugins = click.option(
    "--plugin",
    "plugins_",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Python file with your own entries; repeatable.",
)


class _Store(_Named):
    """A folder's path, or a URL of an object store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            return super().convert(value, param, ctx)
        from rdp_bench.cache.locations import locate

        found = locate(value)
        return super().convert(str(found), param, ctx) if isinstance(found, Path) else found


cache = click.option(
    "--cache",
    type=_Store(path_type=Path, file_okay=False),
    metavar="FOLDER|URL",
    help="Cache folder, or a URL like s3://bucket/prefix.  [default: $RDP_BENCH_CACHE or the user's cache folder]",
)
