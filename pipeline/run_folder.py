"""What every run folder begins with: its configuration, and what may not change while it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import differences, save_config
from pipeline.errors import PipelineError
from pipeline.store.writer import replacing

DATA = "data.json"


def claim_run(folder: Path, config: Any, identity: Mapping[str, Any]) -> None:
    """Write `config.yaml` and `data.json` (the identity), or refuse a folder that holds another run.

    Raises:
        PipelineError: another run, naming what differs.
    """
    path = folder / DATA
    if path.is_file():
        changed = differences(json.loads(path.read_text()), identity)
        if changed:
            raise PipelineError(
                f"{folder}: holds a run with other settings ({'; '.join(changed[:4])}); "
                "choose another folder with --run, or delete this one"
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    with replacing(path) as file:
        file.write(json.dumps(identity, indent=1, sort_keys=True).encode())
