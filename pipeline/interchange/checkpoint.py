"""A checkpoint of the original code of SCAN, VSE∞ or CHAN -> a run folder that evaluate and retrieve take."""

from dataclasses import dataclass
from pathlib import Path

from detector.hub import fetch_file, hub_name, pinned
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, argument, option
from pipeline.files import read_json
from pipeline.runs import CONFIG, DATA, RUNS, import_original


@dataclass(frozen=True)
class ImportCheckpointConfig(CommandConfig):
    """What `scan-pipeline import-checkpoint` does."""

    source: str = argument("A file, or one of a repository on the hub: OWNER/NAME[@REVISION]/FILE.")
    vocabulary: str = option(
        "",
        "Its vocabulary file (.json), found as the checkpoint is, or its BERT, such as bert-base-uncased.",
        metavar="FILE|NAME",
        required=True,
    )
    output: str = option("", "Run folder to write.", metavar="DIR", unset="runs/<name of the checkpoint>")


@dataclass(frozen=True)
class ImportedRun:
    """The run folder that a checkpoint was written to."""

    run: Path
    variant: str
    epoch: int
    best_rsum: float

    def __str__(self) -> str:
        return f"{self.run}: {self.variant}, epoch {self.epoch}, rsum {self.best_rsum:.1f} on its own dev split"


def import_checkpoint(config: ImportCheckpointConfig) -> ImportedRun:
    """Write a run folder from `model_best.pth.tar` and the vocabulary or BERT that it was trained with.

    Raises:
        PipelineError: no such file; or the run folder exists already.
        DetectorError: a published file that cannot be fetched.
        MatcherError: files that cannot be read, or that do not belong together.
    """
    folder = Path(config.output or RUNS / Path(config.source).name.split(".")[0])
    if folder.exists() and not _is_unfinished(folder):
        raise PipelineError(f"{folder}: exists already", "choose another folder with --output")
    source = _fetched(config.source, "SOURCE")
    if not source.is_file():  # before the hub is asked for a BERT
        raise PipelineError(
            f"{source}: no such file",
            "expected a checkpoint, such as model_best.pth.tar, or OWNER/NAME[@REVISION]/FILE",
        )
    imported = pinned(source) or config.source
    checkpoint = import_original(source, str(_fetched(config.vocabulary, "--vocabulary")), folder, imported)
    return ImportedRun(folder, checkpoint.model.config.variant, checkpoint.epoch, checkpoint.best_rsum)


def _is_unfinished(folder: Path) -> bool:
    """Whether an import into a folder was killed: it has no model, and nothing of anybody else."""
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else {""}
    return not names or (DATA in names <= {DATA, CONFIG} and "imported" in read_json(folder / DATA, "a run's identity"))


def _fetched(name: str, origin: str) -> Path:
    """The file of that name here, or fetched where OWNER/NAME[@REVISION]/FILE names one of the hub."""
    asked = hub_name(name)
    if asked is None or not asked.file:
        return Path(name)
    remedy = f"expected {asked.file} in that repository, or a file of this machine"
    return fetch_file(asked._replace(file=""), [asked.file], origin, remedy)
