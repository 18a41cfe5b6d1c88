"""The folder of a run, or of a detector, while it is trained: chosen, told from others, and kept from other processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matcher.fit import BEST
from matcher.state import STATE
from pipeline.config import config_diff, save_config
from pipeline.errors import PipelineError
from pipeline.files import locked, read_json, write_json
from pipeline.runs import CONFIG, DATA, REMEDY

OF_CHECKSUMS = {
    "data.captions_sha256": "captions: others",
    "data.captions_images_sha256": "images of the captions: others",
    "data.splits_sha256": "images of the splits: others",
    "data.annotations_sha256": "annotations: others",
    "data.start_sha256": "weights it starts from: others",
}


def choose_folder(run: str, root: Path, preset: str, otherwise: str) -> Path:
    """The folder of a new run: as asked, else in `root` after the preset, else after what is trained."""
    name = otherwise if preset in {"", Path(CONFIG).stem} else preset  # every run folder has a config.yaml
    return Path(run or root / name)


@contextmanager
def claim_run(
    folder: Path, config: Any, identity: Mapping[str, Any], work: Sequence[str] = (BEST, str(STATE))
) -> Iterator[None]:
    """Write the configuration and the identity of a run, what must not change while it goes on, and keep others out of it.

    Args:
        folder: of the run.
        config: its configuration, a dataclass.
        identity: compared with that of the run in the folder, except for `data.folder`.
        work: names of the files that training has made; where there is none, nothing is lost with other settings.

    Raises:
        PipelineError: the folder holds another run (the message names what differs) or other files, or is in use.
    """
    path = folder / DATA
    others = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".") if folder.is_dir() else []
    if others and not path.is_file():
        raise PipelineError(
            f"{folder}: holds other files ({', '.join(others[:3])}) and no run", "choose another folder with --run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    busy = PipelineError(f"{folder}: another process is training in it", "wait for it, or choose another --run")
    with locked(folder, busy):
        if path.is_file() and any((folder / name).exists() for name in work):
            before = _comparable(read_json(path, "a run's identity", REMEDY))
            if changed := config_diff(before, _comparable(identity), ("run", "asked")):
                shown = [OF_CHECKSUMS.get(line.partition(":")[0], line) for line in changed[:4]]
                raise PipelineError(
                    f"{folder}: holds a run with other settings ({'; '.join(shown)})",
                    "choose another folder with --run, or delete this one",
                )
        write_json(path, identity, indent=1)  # first: killed here, the same command finds a run
        save_config(config, folder / CONFIG)
        yield


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Without the run's place, which may change, and its features, of which `train` says so."""
    data, left_out = identity.get("data"), {"folder", "features_sha256", "features_of_stores"}
    kept = {key: data[key] for key in data if key not in left_out} if isinstance(data, dict) else data
    return {**identity, "data": kept}
