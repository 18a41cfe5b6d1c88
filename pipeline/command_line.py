"""What every command shares: options made of a configuration's fields, and how mistakes and next steps are printed.

A command is a function of a configuration. Its options, their help, ranges and defaults are the fields of that dataclass
(`pipeline.fields`), read when the command is used: `scan-pipeline --help` imports none of them. click takes the words apart;
typer and jsonargparse would need the dataclass, and torch with it, before the first word is read.
"""

import codecs
import contextlib
import errno
import importlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from configs.errors import UserError, first_line
from pipeline.errors import printable

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
SECTIONS = ("Search your photos", "Train and evaluate", "Features", "Detector", "Housekeeping")
SEARCH, TRAIN, FEATURES, DETECTOR, HOUSEKEEPING = SECTIONS
COMPLETION = 'Completion of commands and options: eval "$(_SCAN_PIPELINE_COMPLETE=bash_source scan-pipeline)" (or zsh_source, fish_source).'
INTERRUPTED = 130
ENCODING_ERRORS = "scan-pipeline"


def _any_text(error: UnicodeError) -> tuple[str | bytes, int]:
    """Print bytes of file names that are no UTF-8 as they are, and what the terminal cannot encode as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    char = error.object[error.start]
    raw = bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else char.encode("ascii", "backslashreplace")
    return raw, error.start + 1


codecs.register_error(ENCODING_ERRORS, _any_text)


class Command(click.Command):
    """A command whose options are the fields of a dataclass, the one that its function takes as `config`.

    Args:
        section: of `SECTIONS`, where the help lists it.
        example: a command line that ends the command's help.
        presets: folder of `configs/` whose presets `--config` takes; "": the command has no --config or KEY=VALUE.
        resumable: whether the same command continues after it was interrupted.
        rest: of `click.Command`.
    """

    def __init__(self, section: str, example: str, presets: str = "", resumable: bool = False, **rest: Any):
        super().__init__(**rest)
        self.section, self.example, self.presets, self.resumable = section, example, presets, resumable
        self._schema: type | str = rest["callback"].__annotations__["config"]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            self.params = _parameters(self.schema) + (_preset_parameters(self) if self.presets else [])
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for param in given:
            if given.count(param) > 1 and not getattr(param, "multiple", False):
                raise click.UsageError(f"{param.opts[0]} is given twice; give it once", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from pipeline.config import load_config

        values = {name.replace("__", "."): value for name, value in ctx.params.items()}
        config, overrides = values.pop("config", None), values.pop("overrides", ())
        assert self.callback is not None
        with _one_line(self.resumable):
            return self.callback(
                load_config(self.schema, group=self.presets, config=config, overrides=overrides, options=values)
            )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.presets:
            with formatter.section("KEY=VALUE"):
                formatter.write_text(
                    "sets any field, also those that are no option. Later sources win: a preset or YAML file, KEY=VALUE, "
                    f"options. {ctx.command_path} --list prints the presets and the fields."
                )
        with formatter.section("Example"):
            formatter.write(f"{'':{formatter.current_indent}}{self.example}\n")

    @property
    def schema(self) -> type:
        """The dataclass; of an annotation in quotes it is imported only now, when the command is used."""
        if isinstance(self._schema, str):
            module, _, name = self._schema.rpartition(".")
            self._schema = getattr(importlib.import_module(module), name)
        assert isinstance(self._schema, type)
        return self._schema


class Commands(click.Group):
    """The one place where a user's mistake becomes one line on stderr and exit code 2."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [command for command in self.commands.values() if isinstance(command, Command)]
        for section in SECTIONS:
            rows = [(str(one.name), one.get_short_help_str(1000)) for one in commands if one.section == section]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=ENCODING_ERRORS)
        with _one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_line(resumable: bool = False) -> Iterator[None]:
    """Print a user's mistake as one line, and end with exit code 2."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        command = error.ctx.command_path if error.ctx else "scan-pipeline"
        fail(f"{error.format_message().rstrip('.')}; see {command} --help")
    except (ValueError, OSError, RuntimeError) as error:
        message = _users_error(error, resumable)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        say("stopped; run the same command again to continue" if resumable else "stopped", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def fail(message: str) -> None:
    """Print one line and end with exit code 2."""
    say(f"error: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(2)


def _users_error(error: Exception, resumable: bool) -> str | None:
    """What to tell the user; None for a bug, which keeps its traceback.

    Ours are the errors that our packages raise on purpose, and those that the file system or a full GPU answers with.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename!s}: "
        if error.errno == errno.ENOSPC:
            again = " and run the same command again to continue" if resumable else ""
            return f"{place}{error.strerror}; free some space{again}"
        if place:
            return f"{place}{error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory ({first_line(error)}); use a smaller --batch-size"
    return None


def _parameters(schema: type) -> list[click.Parameter]:
    """The options and arguments of a configuration's fields, and of the fields that its sections offer as options."""
    from pipeline.fields import fields_with_types

    parameters: list[click.Parameter] = []
    for field, hint in fields_with_types(schema):
        if field.metadata.get("argument"):
            parameters.append(click.Argument([field.name], metavar=field.name.upper()))
        elif field.metadata.get("option"):
            parameters.append(_option(field.name, field, hint))
        offered = field.metadata.get("options", ())
        for inner, inner_hint in fields_with_types(hint) if offered else ():
            if inner.name in offered:
                parameters.append(_option(f"{field.name}.{inner.name}", inner, inner_hint))
    return parameters


def _option(dotted: str, field: Any, hint: Any) -> click.Option:
    """One option. Its value stays text: `pipeline.config` checks it as it checks YAML and KEY=VALUE."""
    about, flag = field.metadata, field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"
    default = about.get("unset") or ("" if field.default in ((), None, "") else field.default)
    common: dict[str, Any] = {"help": about["help"], "required": about.get("required", False)}
    name = dotted.replace(".", "__")
    if hint is bool:
        both = f"{flag}/--no-{flag[2:]}" if field.default else flag
        return click.Option([both, name], is_flag=True, default=None, **common)
    several = str(hint).startswith("tuple")
    shown = [choice for choice in about.get("choices", ()) if choice != ""]
    number = {int: "N", float: "NUMBER"}.get(hint, "N" if hint == int | None else "TEXT")
    metavar = f"[{'|'.join(shown)}]" if shown else about.get("metavar") or number
    common["help"] += (" May be repeated." if several else "") + (f"  [default: {default}]" if default != "" else "")
    return click.Option(
        [flag, name], metavar=metavar, multiple=several, shell_complete=_completion(metavar, shown), **common
    )


def _completion(metavar: str, choices: list[str]) -> Callable[..., list[CompletionItem]]:
    """What a shell offers for an option's value: choices, files or folders."""
    kind = "dir" if metavar == "DIR" else "file" if {"FILE", "PATH", "DIR"} & set(metavar.split("|")) else "plain"

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if choices:
            return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]
        return [] if kind == "plain" else [CompletionItem(incomplete, type=kind)]

    return complete


def _preset_parameters(command: Command) -> list[click.Parameter]:
    from pipeline.config import presets

    def list_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            click.echo(_listing(command))
            ctx.exit()

    complete = _completion("", list(presets(command.presets)))
    text = f"Preset of configs/{command.presets} by name, or a YAML file."
    return [
        click.Option(["--config"], metavar="NAME|FILE", help=text, shell_complete=complete),
        click.Option(
            ["--list"], is_flag=True, is_eager=True, expose_value=False, callback=list_all,
            help="Print the presets and every field that KEY=VALUE sets, and stop.",
        ),
        click.Argument(["overrides"], nargs=-1, metavar="[KEY=VALUE]..."),
    ]  # fmt: skip


def _listing(command: Command) -> str:
    """The presets of a command, and its fields with type, default, range and help."""
    from pipeline.config import presets
    from pipeline.fields import describe, leaves

    lines = ["presets, for --config NAME:"]
    for name, path in presets(command.presets).items():
        first = path.read_text(encoding="utf-8").splitlines()[0]  # what it reproduces
        lines.append(f"  {name:20} {first.lstrip('# ')}")
    lines += ["", "fields, for KEY=VALUE:"]
    for key, hint, field in leaves(command.schema):
        lines += [f"  {key}: {describe(hint, field)}"]
        lines += [f"      {field.metadata['help']}"] if field.metadata.get("help") else []
    return "\n".join(lines)


def as_text(word: str) -> str:
    """What was typed in UTF-8, also where the locale has no letters but ASCII's."""
    with contextlib.suppress(UnicodeError):  # whoever reads it refuses what is no text
        return os.fsencode(word).decode()
    return word


def say(text: object, err: bool = False) -> None:
    """Print text to people; names and captions in it cannot command their terminal."""
    click.echo(printable(text), err=err)


def note(text: object) -> None:
    """Print text beside the results, on stderr."""
    say(text, err=True)


def say_next(*commands: tuple[object, ...]) -> None:
    """Every stage ends with what to type next, quoted for a shell."""
    say("next:" + "".join(f"\n  {shlex.join(['scan-pipeline', *map(str, words)])}" for words in commands))
