"""Configuration: one frozen dataclass per command, filled from presets, YAML files and KEY=VALUE overrides.

Later sources win: dataclass defaults < `--config` (a preset's name or a YAML file) < KEY=VALUE < options.
Unknown keys and values of the wrong type are refused in the user's own spelling.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import PipelineError

T = TypeVar("T")


def load_config(
    schema: type[T],
    *,
    group: str,
    config: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> T:
    """Build the `schema` dataclass of one command.

    Args:
        schema: a dataclass with a default for every field; nested dataclasses are sections.
        group: folder of the command's presets under `configs/`, such as "train".
        config: name of a preset, or path of a YAML file; its stem goes to the field `preset`, where there is one.
        overrides: "key=value" or "section.key=value" strings, values in YAML.
        options: command line options by dotted key; None and empty values leave the field alone.

    Raises:
        PipelineError: unknown preset or key, malformed override, value that does not fit.
    """
    merged = _writable(OmegaConf.structured(schema))
    if config:
        path = find_preset(config, group)
        merged = _merge(merged, _read_yaml(path), str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise PipelineError(f"{override!r} is not an override: expected KEY=VALUE, such as training.epochs=5")
        merged = _merge(merged, _parse_override(override), override)
    for key, value in (options or {}).items():
        if value is not None and value != ():
            update = OmegaConf.create()
            OmegaConf.update(update, key, list(value) if isinstance(value, tuple) else value)
            merged = _merge(merged, update, f"--{key.split('.')[-1].replace('_', '-')}")
    if config and "preset" in {field.name for field in dataclasses.fields(schema)}:  # type: ignore[arg-type]
        OmegaConf.update(merged, "preset", Path(config).stem)
    return _build(merged, config)


def find_preset(name: str, group: str) -> Path:
    """Path of a YAML file given by path, or by the name of a preset shipped in `configs/{group}`."""
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        if not Path(name).is_file():
            raise PipelineError(f"{name}: no such configuration file")
        return Path(name)
    folder = Path(str(resources.files("configs"))) / group
    preset = folder / f"{name}.yaml"
    if not preset.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise PipelineError(f"--config {name}: neither a file nor a preset; presets are: {', '.join(known)}")
    return preset


def save_config(config: Any, path: Path) -> None:
    """Write a resolved configuration as YAML that `--config` reads back to the same dataclass."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries and lists."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested mappings, one "key: found … , asked …" per leaf."""
    lines = []
    for key in [*found, *(key for key in wanted if key not in found)]:
        left, right = found.get(key), wanted.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            shown = ["nothing" if value is None else value for value in (left, right)]
            lines.append(f"{prefix}{key}: found {shown[0]}, asked {shown[1]}")
    return lines


def _writable(config: DictConfig) -> DictConfig:
    """Frozen dataclasses arrive read-only; they are only frozen once complete."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if isinstance(config._get_node(key), DictConfig):
            _writable(config[key])
    return config


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # YAML errors come in many classes; each is a mistake in this file
        raise PipelineError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise PipelineError(f"{path}: expected a mapping of keys to values at the top")
    return loaded


def _parse_override(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:
        raise PipelineError(f"{override!r}: the value is not readable as YAML: {str(error).splitlines()[0]}") from error


def _merge(base: DictConfig, update: DictConfig, source: str) -> DictConfig:
    unknown = [key for key in _leaves(update) if not _known(base, key)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _leaves(base), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(_leaves(base))}"
        raise PipelineError(f"{source}: unknown key {unknown[0]}{hint}")
    try:
        merged = OmegaConf.merge(base, update)
    except OmegaConfBaseException as error:
        raise PipelineError(f"{source}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key in config:
        value = config._get_node(key)
        nested = isinstance(value, DictConfig) and not value._is_none() and len(value) > 0
        keys += _leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return keys


def _known(config: DictConfig, dotted: str) -> bool:
    """Whether the schema has this key; below a free-form mapping (dict[str, Any]) every key is known."""
    node: Any = config
    for part in dotted.split("."):
        if not isinstance(node, DictConfig):
            return False
        if not dataclasses.is_dataclass(OmegaConf.get_type(node)):
            return True
        if part not in node._content:
            return False
        node = node._get_node(part)
    return True


def _build(merged: DictConfig, config: str | None) -> Any:
    try:
        return _with_tuples(OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise PipelineError(f"{config or 'configuration'}: {str(error).splitlines()[0]}") from error


def _with_tuples(config: Any) -> Any:
    """OmegaConf hands out lists; the dataclasses say tuple."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            changes[field.name] = tuple(value)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _with_tuples(value)
    return dataclasses.replace(config, **changes)
