"""The `scan-pipeline` command: a configuration in, one call, what it made and what to do next out.

Nothing heavy is imported here: `scan-pipeline --help` answers at once. A command names its configuration, which is defined
beside its stage; those of a few options are defined here.
"""

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import click

from pipeline.command_line import (
    COMPLETION,
    CONTEXT,
    DETECTOR,
    FEATURES,
    HOUSEKEEPING,
    SEARCH,
    TRAIN,
    Commands,
    note,
    say,
    say_next,
)  # fmt: skip
from pipeline.fields import PAGE, CommandConfig, argument, option

if TYPE_CHECKING:
    import pipeline.evaluate
    import pipeline.explain
    import pipeline.extraction.job
    import pipeline.index
    import pipeline.interchange.checkpoint
    import pipeline.interchange.common
    import pipeline.pages.plots
    import pipeline.push
    import pipeline.retrieve
    import pipeline.runs
    import pipeline.service.config
    import pipeline.train_detector


@click.group(cls=Commands, context_settings=CONTEXT, epilog=COMPLETION)
@click.version_option(metadata.version("scan-pipeline"), prog_name="scan-pipeline")
def main() -> None:
    """Photos in, ranked photos out: Visual Genome region features and Stacked Cross Attention (SCAN).

    \b
        scan-pipeline extract --images coco/train2014
        scan-pipeline train
        scan-pipeline retrieve --query "two dogs play by a tree"
    """


@main.command(
    section=SEARCH, presets="extract", resumable=True,
    example="scan-pipeline extract --images coco/train2014 --images coco/val2014 --config quick_cpu",
)  # fmt: skip
def extract(config: "pipeline.extraction.job.ExtractConfig") -> None:
    """Write the region features of every photo in a folder.

    Killed at any moment, the same command continues. Photos that cannot be read become rows of failures.jsonl.
    """
    from pipeline import extract as stage

    store = stage.run(config)
    say(f"{store.path}: {len(store):,} photos, {store.num_regions} regions of {store.feature_dim} numbers each")
    if failures := stage.failures_of(store):
        say(failures)
    if not store.complete:
        say("not complete: other processes are at work on it, or a --limit was set; the same command continues")
    say_next(*stage.next_steps(store))


@main.command(section=SEARCH, example='scan-pipeline retrieve --query "two dogs play by a tree" --picture dogs.png')
def retrieve(config: "pipeline.retrieve.RetrieveConfig") -> None:
    """Find photos for a sentence, or captions for a photo."""
    from pipeline import retrieve as stage

    answers = stage.run(config, report=note)
    if config.json:
        click.echo(stage.to_json(answers))
    else:
        say("\n\n".join(map(str, answers)))
        if steps := stage.next_steps(config, answers):
            say_next(*steps)


@main.command(section=SEARCH, resumable=True, example="scan-pipeline index --features features/photos")
def index(config: "pipeline.index.IndexConfig") -> None:
    """Make the search among many photos fast: embeddings, vectors, and how many candidates a query takes.

    Killed at any moment, the same command continues. Other commands bring the index up to date by themselves.
    """
    from pipeline import index as stage
    from pipeline.retrieve import searched

    say(str(stage.run(config, report=note)))
    say_next(("retrieve", "--query", "two dogs play by a tree", *searched(config.features, config.run)))


@main.command(
    section=SEARCH,
    example='scan-pipeline explain --image photo.jpg --caption "two dogs play by a tree" --output dogs.html',
)
def explain(config: "pipeline.explain.ExplainConfig") -> None:
    """Show why a photo matches: where each word looks, and what it adds."""
    from pipeline import explain as stage

    explanation = stage.run(config, report=note)
    say(f"{explanation}\n{'page' if config.output.lower().endswith(PAGE) else 'picture'}: {config.output}")


@main.command(section=SEARCH, example="scan-pipeline app --run runs/t2i_mean --port 8000")
def app(config: "pipeline.service.config.ServeConfig") -> None:
    """Search as you type, in a browser.

    A page over the routes of `serve`. Needs the extra `app`: pip install 'scan-pipeline[app]'.
    """
    from pipeline.service.run import serve

    serve(config, page=True, say=say)


@main.command(name="serve", section=SEARCH, example="scan-pipeline serve --port 8000")
def serve_api(config: "pipeline.service.config.ServeConfig") -> None:
    """Answer searches of other programs over HTTP.

    Routes, limits and nodes: pipeline/service/README.md. Needs the extra `app`: pip install 'scan-pipeline[app]'.
    """
    from pipeline.service.run import serve

    serve(config, say=say)


@main.command(
    section=TRAIN, presets="train", resumable=True,
    example="scan-pipeline train --config small_cpu --features features/train2014 training.margin=0.3",
)  # fmt: skip
def train(config: "pipeline.runs.TrainConfig") -> None:
    """Train SCAN on region features and their captions.

    Killed at any moment, the same command continues from the last checkpoint.
    """
    from pipeline import train as stage

    trained = stage.run(config, report=say)
    if not trained.is_main:
        return
    say(f"{trained.run}: {trained.result}")
    say_next(
        ("evaluate", "--run", trained.run),
        ("retrieve", "--run", trained.run, "--query", "two dogs play by a tree"),
    )


@main.command(section=TRAIN, example="scan-pipeline evaluate --run runs/t2i_mean --html evaluation.html")
def evaluate(config: "pipeline.evaluate.EvaluateConfig") -> None:
    """Print a run's recalls for both tasks, and save them.

    They are written to evaluation/ in the run's folder.
    """
    from pipeline import evaluate as stage

    evaluation = stage.run(config, report=say)
    say(evaluation)
    if not evaluation.verified:
        raise SystemExit(1)


@main.command(section=TRAIN, example="scan-pipeline plot --run runs/t2i_mean --run runs/i2t_mean --output curves.pdf")
def plot(config: "pipeline.pages.plots.PlotConfig") -> None:
    """Draw the training curves of one or several runs."""
    from pipeline.pages import plots

    say(plots.run(config))


@main.command(
    section=TRAIN,
    example="scan-pipeline import-checkpoint model_best.pth.tar --vocabulary f30k_precomp_vocab.json",
)
def import_checkpoint(config: "pipeline.interchange.checkpoint.ImportCheckpointConfig") -> None:
    """Turn a checkpoint of the original code of SCAN, VSE∞ or CHAN into a run.

    Nothing in the checkpoint is executed.
    """
    from pipeline.interchange.checkpoint import import_checkpoint

    imported = import_checkpoint(config)
    say(imported)
    say_next(("evaluate", "--run", imported.run, "--features", "DIR", "--captions", "FILE"))


@dataclass(frozen=True)
class InspectConfig(CommandConfig):
    """What `scan-pipeline inspect` does."""

    store: str = argument()
    verify: bool = option(True, "Read every byte and compare checksums.")
    repair: bool = option(False, "Set aside what is damaged (in STORE/damaged), and rebuild what can be rebuilt.")


@main.command(section=FEATURES, example="scan-pipeline inspect features/train2014")
def inspect(config: InspectConfig) -> None:
    """Print what a feature store holds, and verify its checksums.

    Exit code 0: nothing is damaged, though an extraction may have to go on. 1: damaged; with --repair: repaired, but the
    command that made the store has to make something again. Without --repair nothing is changed.
    """
    from pipeline.store.inspect import inspect_store
    from pipeline.store.repair import repair_store

    report = (repair_store if config.repair else inspect_store)(config.store, verify=config.verify)
    say(report)
    if not report.ok:
        raise SystemExit(1)


@main.command(
    section=FEATURES, resumable=True,
    example="scan-pipeline import-features trainval_resnet101_faster_rcnn_genome_36.tsv --images coco",
)  # fmt: skip
def import_features(config: "pipeline.interchange.common.ImportFeaturesConfig") -> None:
    """Turn features that others computed into a store.

    SOURCE is a folder in the layout of the original SCAN code (with --split), a bottom-up attention TSV file (Caffe's or
    LXMERT's columns), a folder with one .npz an image (MILVLG), or an HDF5 file of VQA code.
    """
    from pipeline.extract import next_steps
    from pipeline.interchange.convert import import_features

    store = import_features(config, report=note)
    say(f"{store.path}: {len(store):,} photos, {store.num_regions} regions of {store.feature_dim} numbers each")
    say_next(*next_steps(store))


@main.command(
    section=FEATURES,
    example="scan-pipeline export-features features/train2014 --format tsv --output train2014.tsv",
)
def export_features(config: "pipeline.interchange.common.ExportFeaturesConfig") -> None:
    """Write a store in a format of other code.

    import-features reads all of them back. The output takes its name when it is complete. What the format does not hold
    is listed at the end.
    """
    from pipeline.interchange.convert import export_features

    export_features(config, report=note)
    say(f"{config.output}: written from {config.store}")
    split = ("--split", config.split or "SPLIT") if config.format == "original" else ()
    say_next(("import-features", config.output, *split))


@main.command(
    section=DETECTOR, presets="train-detector", resumable=True,
    example="scan-pipeline train-detector --config vg_r101_1gpu --visual-genome vg --held-out dataset_coco.json",
)  # fmt: skip
def train_detector(config: "pipeline.train_detector.TrainDetectorConfig") -> None:
    """Optional first step: train the region detector.

    On Visual Genome's annotations, or on COCO's. Killed at any moment, the same command continues from the last
    checkpoint. Under torchrun every process trains.
    """
    from pipeline import train_detector as stage

    trained = stage.run(config, report=say)
    if not trained.is_main:
        return
    say(f"{trained.weights}: {trained.result}")
    say_next(("extract", "--images", "DIR", "--weights", trained.weights))


@dataclass(frozen=True)
class ConvertWeightsConfig(CommandConfig):
    """What `scan-pipeline convert-weights` does."""

    source: str = argument()
    target: str = argument()


@main.command(
    section=DETECTOR,
    example="scan-pipeline convert-weights pytorch_model.bin ~/.cache/scan-pipeline/weights/frcnn-vg.safetensors",
)
def convert_weights(config: ConvertWeightsConfig) -> None:
    """Convert detector weights to safetensors.

    Every published layout is recognised by its keys and shapes.
    """
    from pathlib import Path

    from detector.weights import convert

    say(convert(Path(config.source), Path(config.target)))
    say_next(("extract", "--images", "DIR", "--weights", config.target))


@dataclass(frozen=True)
class DoctorConfig(CommandConfig):
    """What `scan-pipeline doctor` does."""

    json: bool = option(False, "Print JSON instead of lines.")


@main.command(
    section=HOUSEKEEPING,
    example="scan-pipeline push runs/t2i_mean OWNER/NAME --license cc-by-4.0 --detector OWNER/DETECTOR",
)
def push(config: "pipeline.push.PushConfig") -> None:
    """Publish a store, a run or a detector on the Hugging Face hub.

    With its checksums and a card. Its name, OWNER/NAME or OWNER/NAME@REVISION, then stands for it wherever a path does.
    """
    from pipeline import push as stage

    say_next(stage.run(config, report=say))


@main.command(section=HOUSEKEEPING, example="scan-pipeline doctor")
def doctor(config: DoctorConfig) -> None:
    """Print what works here, what is missing and what to do next.

    Exit code 1 when something that is needed is broken.
    """
    from pipeline.doctor import report

    checks: list[report.Check] = []
    for check in report.examine(report.SECTIONS):
        if not config.json:
            say(check if checks and checks[-1].section == check.section else f"{check.section}\n{check}")
        checks.append(check)
    if config.json:
        click.echo(report.to_json(checks))
    else:
        say("next:" + "".join(f"\n  {step}" for step in report.next_steps(checks)))
    if not report.healthy(checks):
        raise SystemExit(1)


@dataclass(frozen=True)
class DemoConfig(CommandConfig):
    """What `scan-pipeline demo` does."""

    output: str = option("", "Folder for everything.", metavar="DIR", unset="demo, or demo_from_scratch")
    from_scratch: bool = option(False, "Draw a small world and train detector and matcher on it: ten minutes.")
    quick: bool = option(False, "With --from-scratch: two minutes, at lower quality.")
    seed: int = option(0, "With --from-scratch: of the world.", min=0, max=2**32 - 1)
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")


@main.command(section=SEARCH, example="scan-pipeline demo", resumable=True)
def demo(config: DemoConfig) -> None:
    """Search real sample photos in a minute: no download, no GPU.

    Prints every command before it runs it. With --from-scratch it trains everything on a world that it draws; exit code 1
    where the held-out scenes fall short of what is promised.
    """
    from pathlib import Path

    if config.from_scratch:
        from pipeline.demo import from_scratch

        output = Path(config.output or from_scratch.FOLDER)
        made = from_scratch.run(output, quick=config.quick, seed=config.seed, device=config.device, report=say)
        if not made.reached:
            raise SystemExit(1)
        return
    from pipeline.demo import photos
    from pipeline.errors import PipelineError

    if config.quick or config.seed:
        raise PipelineError("--quick and --seed: of the drawn world", "add --from-scratch, or leave them out")
    photos.run(Path(config.output or photos.FOLDER), config.device, report=say)
    say_next(("extract", "--images", "DIR"), ("app",))


if __name__ == "__main__":
    main()
