"""What every command shares: options, and how mistakes and next steps are said."""

import errno
import functools
import io
import sys
from collections.abc import Callable
from typing import Any

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """The one place where a user's mistake becomes one line on stderr and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are used

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, RuntimeError) as error:
            message = _users_error(error)
            if message is None:
                raise
            click.echo(f"error: {' '.join(message.split())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to continue", err=True)
            ctx.exit(130)


def _users_error(error: Exception) -> str | None:
    """What to tell the user; None for a bug, which keeps its traceback.

    Ours are the errors that our packages raise on purpose, and those that the file system or a full GPU answers with.
    """
    if type(error).__module__.split(".")[0] in {"pipeline", "detector", "matcher"}:
        return str(error)
    if isinstance(error, OSError):
        remedy = "; free some space and run the same command again to continue" if error.errno == errno.ENOSPC else ""
        if error.filename is not None or remedy:
            return f"{'' if error.filename is None else f'{error.filename!s}: '}{error.strerror}{remedy}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory ({str(error).splitlines()[0]}); use a smaller --batch-size"
    return None


def configurable(group: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds --config and KEY=VALUE, which every command with a configuration takes."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
        return click.option("--config", help=f"Preset of configs/{group} by name, or a YAML file.")(command)

    return add


def several(*names: str, **attributes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that may be repeated."""
    return click.option(*names, multiple=True, **attributes)


device_option = functools.partial(click.option, "--device", help="auto, cpu, cuda, cuda:1, …  [default: auto]")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed; the others are left to the configuration's defaults."""
    return {key: value for key, value in options.items() if value not in (None, ())}


def say_next(*commands: str) -> None:
    """Every stage ends with what to type next."""
    click.echo("next:" + "".join(f"\n  {command}" for command in commands))
