"""Fields of a configuration: default, help, choices and range of a value stand once.

They become the command line option, its help, the list of KEY=VALUE, and the check of every value wherever it comes from.

    workers: int = option(2, "Decoding processes.", min=0)               --workers 4 (or workers=4)
    shard_size: int = knob(64, "Photos per shard.", min=1)               shard_size=32
    training: FitConfig = section(FitConfig, options=("epochs",))        --epochs 5, training.margin=0.3

A `knob` is of `configs.fields`, which `detector` and `matcher` share: they cannot import this module.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.fields import BOUNDS, check_limits, knob
from pipeline.errors import PipelineError

# What files that a command writes are named, and what all of them hold: only such a file is ever replaced
PAGE, PICTURE, FIGURE = (".html", ".htm"), (".png", ".jpg", ".jpeg"), (".png", ".jpg", ".jpeg", ".pdf", ".svg")
SIGNATURE = "written by scan-pipeline"
SIGNED = 64 << 20  # bytes from a file's beginning where its signature is looked for

NUMBERS = {int: "a whole number", float: "a number"}


def option(
    default: Any,
    help: str,
    *,
    flag: str = "",
    metavar: str = "",
    unset: str = "",
    required: bool = False,
    **limits: Any,
) -> Any:
    """A field that is a command line option as well.

    Args:
        default, help, limits: as of `knob`; or `writes`, the suffixes of a file that the command writes.
        flag: name of the option, such as "--run"; "" takes the field's.
        metavar: what stands for the value in the help; "" takes one from the type or the choices.
        unset: what an empty default stands for, in words.
        required: whether the option must be given.
    """
    words = {"option": True, "flag": flag, "metavar": metavar, "unset": unset, "required": required}
    return knob(default, help, **words, **limits)


def run_option() -> Any:
    """The run that a command searches with or explains."""
    text = "Run folder, starter (shipped), or hub:OWNER/NAME[/FOLDER]."
    return option("", text, metavar="DIR", unset="newest that fits, else starter")


def argument(help: str = "") -> Any:
    """A field that is a positional argument, named in capitals."""
    return knob("", help, argument=True)


def section(schema: type, *, options: tuple[str, ...] = ()) -> Any:
    """A nested configuration. Its fields named in `options` are command line options without the section's name."""
    return dataclasses.field(default_factory=schema, metadata={"options": options})


@dataclasses.dataclass(frozen=True)
class CommandConfig:
    """Base of the commands' configurations: checks the values when one is made, by the command line or in Python."""

    def __post_init__(self) -> None:
        check_limits(self, PipelineError)
        for field in dataclasses.fields(self):
            name, suffixes = getattr(self, field.name), field.metadata.get("writes")
            if suffixes and (name or field.default):  # "": no such file is asked for
                _refuse_to_write(f"--{field.name} {name}", Path(name), suffixes)


def _refuse_to_write(spelled: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a PipelineError for a name of another kind of file, or of one that this program did not write."""
    if path.suffix.lower() not in suffixes:
        raise PipelineError(f"{spelled}: expected a name that ends in {', '.join(suffixes)}")
    if path.exists() and not (path.is_file() and _is_signed(path)):
        raise PipelineError(f"{spelled}: is there already, and was not {SIGNATURE}", "choose another name")


def _is_signed(path: Path) -> bool:
    with path.open("rb") as file:
        return SIGNATURE.encode() in file.read(SIGNED)


def fields_with_types(schema: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """The fields of a dataclass, each with its type."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield field, hints[field.name]


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Dotted key, type and field of everything that can be set, sections taken apart."""
    for field, hint in fields_with_types(schema):
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{field.name}", hint, field


def describe(hint: Any, field: dataclasses.Field) -> str:
    """Type, default and range of a field, such as "int = 64, at least 1"."""
    default = field.default_factory() if callable(field.default_factory) else field.default
    kind = hint.__name__ if hint in (bool, int, float, str) else str(hint).replace("typing.", "")
    limits = field.metadata
    ranges = " and ".join(f"{words} {limits[name]}" for name, (words, _) in BOUNDS.items() if name in limits)
    allowed = " or ".join(str(choice) for choice in limits.get("choices", ()) if choice != "") or ranges
    return f"{kind} = {default!r}" + (f", {allowed}" if allowed else "")


def convert(hint: Any, value: Any) -> Any:
    """A value from YAML or from the command line (text) as the type that a field declares.

    Raises:
        ValueError: what was expected instead.
    """
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        (kind,) = set(kinds) - {types.NoneType}
        return None if value is None else convert(kind, value)
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError("a list, such as [a, b]")
        return tuple(convert(kinds[0], item) for item in value)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError("a mapping, such as {key: value}")
        return value
    if origin is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    return _text(value) if origin is str else _number(origin, value)


def _number(kind: type, value: Any) -> Any:
    allowed = (str, int) if kind is int else (str, int, float)
    is_odd = isinstance(value, str) and ("_" in value or not value.isascii())  # Python reads 1_0 and full-width digits
    if isinstance(value, bool) or not isinstance(value, allowed) or is_odd:
        raise ValueError(NUMBERS[kind])
    try:
        return kind(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(NUMBERS[kind]) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text; put it in quotes")
    if "\0" in value:
        raise ValueError("text without a NUL character")
    return value
