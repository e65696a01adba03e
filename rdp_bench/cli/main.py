"""The command line. Nothing heavy is imported before it is needed: `--help` and `list` answer at once."""

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from rdp_bench import __version__
from rdp_bench.errors import FetchError, RdpBenchError, UsageError
from rdp_bench.terminal import OneLine, printable, terminal

log = logging.getLogger("rdp_bench")


COMMANDS = (
    "audit", "cache", "check", "cite", "data", "doctor", "export", "list", "purify", "report", "results", "run", "show",
    "status", "train", "verify", "weights",
)  # fmt: skip
"""Each is in the file of its name, which is imported when the command is asked for."""


class _Group(click.Group):
    """Finds commands in their files; reports errors as one line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module = import_module(f"rdp_bench.cli.{cmd_name}")
            # An underscore follows a name that is also a built-in's or an option's.
            command = getattr(module, f"{cmd_name}_", None) or getattr(module, cmd_name)
            _accept_verbose(command)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with terminal():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RdpBenchError as error:
            several = isinstance(error, FetchError)  # a line for each place that was tried
            click.echo(f"error: {printable(str(error), lines=several)}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("stopped; finished work is kept, and the same command continues from there", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:  # a file's trouble, an entry's, or a mistake of ours
            click.echo(f"error: {printable(_line(error), lines=False)}", err=True)
            log.info("where that was", exc_info=True)
            ctx.exit(1)


def _accept_verbose(command: click.Command) -> None:
    """Give a command and those of its group -v too, so that it may come after them."""

    def set_level(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's
        if value:
            log.setLevel(logging.INFO)

    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _accept_verbose(each)
    flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "help": "Print more on stderr."}
    command.params.append(click.Option(["-v", "--verbose"], callback=set_level, **flag))


def _once() -> Callable[[logging.LogRecord], bool]:
    """A filter: a warning of every grid of a suite or every part of an audit is printed once."""
    said: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        again = record.levelno == logging.WARNING and text in said
        said.add(text)
        return not again

    return first


def _line(error: Exception) -> str:
    """An unexpected error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (rdp-bench -v says where)"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="rdp-bench")
@click.option("-v", "--verbose", is_flag=True, help="Print more on stderr.")
def main(verbose: bool) -> None:
    """Measure defenses that purify a classifier's input against transfer attacks.

    Start with: rdp-bench run table1, then: rdp-bench report
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    handler.addFilter(_once())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    log.setLevel(logging.INFO if verbose else logging.WARNING)


if __name__ == "__main__":
    main()
