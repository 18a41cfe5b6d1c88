"""Steps of a demo: each prints the command that a user would type, calls that command's stage, and returns what it made."""

import dataclasses
import shlex
from collections.abc import Callable
from os import PathLike
from types import ModuleType
from typing import Any

from pipeline.config import load_config


@dataclasses.dataclass(frozen=True)
class Steps:
    """Runs stages in this process, so that torch is imported once.

    Args:
        report: called with every line to print.
        device: of every step; "auto" is left out of the printed command.
    """

    report: Callable[[str], Any]
    device: str = "auto"

    def __call__(self, stage: ModuleType, schema: type, *, preset: str = "", **options: Any) -> Any:
        """Run `stage.run` with a configuration.

        Args:
            stage: module of a command, such as `pipeline.extract`.
            schema: its configuration.
            preset: of the command; "": none.
            options: fields of the configuration that are options of the command.

        Raises:
            PipelineError, DetectorError, MatcherError: as the stage.
        """
        if self.device != "auto":
            options["device"] = self.device
        options = {name: _plain(value) for name, value in options.items()}
        command = stage.__name__.rpartition(".")[2].replace("_", "-")
        flags = {field.name: field.metadata["flag"] for field in dataclasses.fields(schema) if "flag" in field.metadata}
        words = ["scan-pipeline", command, *(("--config", preset) if preset else ())]
        for name, value in options.items():
            flag = flags.get(name) or f"--{name.replace('_', '-')}"
            words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
        self.report(f"\n$ {shlex.join(words)}")
        config: Any = load_config(schema, group=command, config=preset or None, options=options)
        return stage.run(config)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, PathLike) else value
