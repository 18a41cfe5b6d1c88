"""Configuration: one frozen dataclass per command, filled from presets, YAML files, KEY=VALUE and options.

Later sources win: dataclass defaults < `--config` (a preset's name or a YAML file) < KEY=VALUE < options. A value that does
not fit its field (`pipeline.fields`) is refused in the user's own spelling, wherever it comes from. Text stays as it is:
nothing in it is expanded.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from configs.errors import first_line
from configs.fields import refusal
from configs.files import write_atomically
from pipeline.errors import PipelineError
from pipeline.fields import convert, leaves

T = TypeVar("T")
LARGEST_FILE = 1 << 20  # bytes of a YAML file
INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_FLOAT = re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
SHOWN = 60  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """PyYAML's with the numbers of YAML 1.2, as --options read them, and without keys that stand twice.

    YAML 1.1 reads 010 as 8, 1:30 as 90, and 3e-4 as text.
    """

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if tag not in (INTEGER, FLOAT)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) > len(set(keys)):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"duplicate key {twice}, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which also quotes text that `_Loader` would read as a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(INTEGER, re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789"))
    _each.add_implicit_resolver(FLOAT, _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(INTEGER, lambda _, node: int(node.value))


def load_config(
    schema: type[T],
    *,
    group: str = "",
    config: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> T:
    """Build the `schema` dataclass of one command.

    Args:
        schema: a dataclass; nested dataclasses are sections. Its field `preset`, if it has one, takes the name of
            `config`, unless that file has its own.
        group: folder of the command's presets under `configs/`, such as "train".
        config: name of a preset, or path of a YAML file.
        overrides: "key=value" or "section.key=value" strings, values in YAML.
        options: values of command line options, as text, by dotted key; None and empty values leave the field alone.

    Raises:
        PipelineError: unknown preset or key, malformed override, value that does not fit.
    """
    values: dict[str, Any] = {}
    if config:
        path = find_preset(config, group)
        if "preset" in typing.get_type_hints(schema):
            values["preset"] = "" if path.stem == "config" else path.stem  # a run folder's own config.yaml
        _merge(schema, values, _read_yaml(path), str(path))
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            raise PipelineError(f"{override!r}: {key} is given twice; give it once")
        _merge_override(schema, values, override)
    for dotted, value in (options or {}).items():
        if value is not None and value != ():
            flag = f"--{dotted.split('.')[-1].replace('_', '-')}"
            _set(schema, values, dotted.split("."), value, f"{flag} {_shown(value)}")
    return _build(schema, values)


def from_mapping(schema: type[T], content: Mapping[str, Any], source: str) -> T:
    """A dataclass from nested plain values, such as the body of a request, in the words of every other refusal.

    Raises:
        PipelineError: an unknown key, or a value that does not fit; it names `source`.
    """
    values: dict[str, Any] = {}
    _merge(schema, values, content, source)
    return _build(schema, values)


def find_preset(name: str, group: str) -> Path:
    """Path of a YAML file given by path, or by the name of a preset shipped in `configs/{group}`."""
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        if not Path(name).is_file():
            raise PipelineError(f"{name}: no such configuration file")
        return Path(name)
    known = presets(group)
    if name not in known:
        raise PipelineError(f"--config {name}: neither a file nor a preset; presets are: {', '.join(known)}")
    return known[name]


def presets(group: str) -> dict[str, Path]:
    """The presets shipped in `configs/{group}`, by name."""
    return {path.stem: path for path in sorted((Path(str(resources.files("configs"))) / group).glob("*.yaml"))}


def save_config(config: Any, path: Path) -> None:
    """Write a resolved configuration as YAML that `--config` reads back to the same dataclass."""
    write_atomically(path, to_yaml(to_dict(config)).encode())


def to_yaml(content: Mapping[str, Any]) -> str:
    """Nested plain dictionaries and lists as YAML that `--config` reads back."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries and lists."""
    return dataclasses.asdict(config, dict_factory=_with_lists)


def config_diff(
    left: Mapping[str, Any], right: Mapping[str, Any], labels: tuple[str, str], prefix: str = ""
) -> list[str]:
    """What differs between two nested mappings, one line per leaf: with the labels ("store", "run") "num_regions: store 36, run 12"."""
    lines = []
    for key in [*left, *(key for key in right if key not in left)]:
        pair = left.get(key), right.get(key)
        if isinstance(pair[0], Mapping) and isinstance(pair[1], Mapping):
            lines += config_diff(pair[0], pair[1], labels, f"{prefix}{key}.")
        elif pair[0] != pair[1]:
            shown = ["nothing" if value is None else value for value in pair]
            lines.append(f"{prefix}{key}: {labels[0]} {shown[0]}, {labels[1]} {shown[1]}")
    return lines


def _with_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE >> 20} MB")
        loaded = _parse_yaml(content.decode("utf-8-sig"))
    except OSError as error:
        raise PipelineError(f"{path}: not readable: {error.strerror}") from error
    except ValueError as error:
        raise PipelineError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise PipelineError(f"{path}: expected a mapping of keys to values at the top")
    return loaded


def _parse_yaml(text: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(str(error) or "nested too deeply") from error


def _merge_override(schema: type, values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise PipelineError(f"{override!r} is not an override: expected KEY=VALUE, such as training.epochs=5")
    try:
        value = _parse_yaml(text)
    except ValueError as error:
        value = error
    hint = {dotted: hint for dotted, hint, _ in leaves(schema)}.get(key)
    if hint in (str, str | None) and not isinstance(value, str) and (hint is str or value is not None):
        value = text  # run=2014 is a name, not a number
    if isinstance(value, ValueError):
        raise PipelineError(f"{override!r}: the value is not readable as YAML: {first_line(value)}")
    _set(schema, values, key.split("."), value, override)


def _merge(schema: type, values: dict[str, Any], update: Mapping[Any, Any], source: str, prefix: str = "") -> None:
    """Set what a file says, key by key."""
    hints = typing.get_type_hints(schema)
    for key, value in update.items():
        hint: Any = hints.get(key)
        section, dot, name = str(key).partition(".")
        if dot and section in hints:
            raise PipelineError(f"{source}: key {prefix}{key}; expected {name} below {section}:, in a line of its own")
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            _merge(hint, values.setdefault(key, {}), value, source, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            spelled = f"{source}: {prefix}{key}: {_shown(value)}" if key in hints else source
            _set(schema, values, [str(key)], value, spelled, prefix)


def _set(schema: type, values: dict[str, Any], keys: Sequence[str], value: Any, spelled: str, prefix: str = "") -> None:
    """Check one value and put it in its place.

    Args:
        keys: of the field; a section's name comes before it, the keys of a free mapping after it.
        spelled: what the user wrote.
        prefix: of the sections that lead to `schema`, for messages.
    """
    (key, *rest), hint = keys, typing.get_type_hints(schema).get(keys[0])
    free = typing.get_origin(hint) is dict
    if dataclasses.is_dataclass(hint):
        inner: Any = hint
        if rest:
            return _set(inner, values.setdefault(key, {}), rest, value, spelled, f"{prefix}{key}.")
        raise PipelineError(f"{spelled}: expected one of the section's keys, such as {key}.{next(leaves(inner))[0]}")
    if hint is None or (rest and not free):
        raise PipelineError(f"{spelled}: {_unknown(schema, '.'.join(keys), prefix)}")
    if rest:
        return _set_free(values.setdefault(key, {}), rest, value, spelled)
    field = next(field for field in dataclasses.fields(schema) if field.name == key)
    try:
        converted = convert(hint, value)
    except ValueError as error:
        raise PipelineError(f"{spelled}: expected {error}") from None
    if expected := refusal(field.metadata, converted):
        raise PipelineError(f"{spelled}: expected {expected}")
    values[key] = converted
    return None


def _set_free(mapping: dict[str, Any], keys: Sequence[str], value: Any, spelled: str) -> None:
    for key in keys[:-1]:
        mapping = mapping.setdefault(key, {})
        if not isinstance(mapping, dict):
            raise PipelineError(f"{spelled}: {key} is a value, and has no keys")
    mapping[keys[-1]] = value


def _unknown(schema: type, dotted: str, prefix: str = "") -> str:
    known = [f"{prefix}{key}" for key, _, _ in leaves(schema)]
    near = difflib.get_close_matches(f"{prefix}{dotted}", known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {prefix}{dotted}; {hint}"


def _build(schema: type[T], values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(schema)
    built = {
        key: _build(hints[key], value) if dataclasses.is_dataclass(hints[key]) else value
        for key, value in values.items()
    }
    return schema(**built)


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
