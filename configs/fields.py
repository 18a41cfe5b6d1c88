"""Fields with their help and limits, and the one check of every value: detector, matcher and pipeline share them."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "min": ("at least", operator.ge),
    "max": ("at most", operator.le),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
}


def knob(default: Any, help: str, **limits: Any) -> Any:
    """A field that KEY=VALUE and YAML files set.

    Args:
        default: the value where none is given.
        help: one line.
        limits: `choices`; `min` and `max`, inclusive; `above` and `below`, exclusive; `longest`, characters. Of a tuple: of
            each item, and `most`, of them. `of` has, for other fields, the values with which this one does something.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def check_limits(config: Any, error: type[ValueError], prefix: str = "") -> None:
    """Raise the error for the first field of a dataclass whose value is outside its limits."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if expected := refusal(field.metadata, value):
            raise error(f"{prefix}{field.name} {value!r}: expected {expected}")


def idle(config: Any, prefix: str) -> list[str]:
    """The fields of a dataclass that were set and do nothing beside the others, a line each."""
    return [
        f"{prefix}{field.name}={getattr(config, field.name)} does nothing: {prefix}{other} is {getattr(config, other)}, not "
        + " or ".join(values)
        for field in dataclasses.fields(config)
        for other, values in field.metadata.get("of", {}).items()
        if getattr(config, field.name) != field.default and getattr(config, other) not in values
    ]


def refusal(limits: Mapping[str, Any], value: Any) -> str:
    """What is expected of a field with this metadata, if the value is something else; else ""."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if "choices" in limits and item not in limits["choices"]:
            return f"one of {', '.join(str(choice) for choice in limits['choices'] if choice != '')}"
        if isinstance(item, float) and not math.isfinite(item):
            return "a finite number"
        for name, (words, holds) in BOUNDS.items():
            if item is not None and name in limits and not holds(item, limits[name]):
                return f"{words} {limits[name]}"
        if isinstance(item, str) and len(item) > limits.get("longest", len(item)):
            return f"at most {limits['longest']} characters"
    if isinstance(value, tuple) and len(value) > limits.get("most", len(value)):
        return f"at most {limits['most']} of them"
    return ""
