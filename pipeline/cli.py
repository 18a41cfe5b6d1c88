"""The `scan-pipeline` command: options in, one call, what it made and what to do next out.

Nothing heavy is imported here: `scan-pipeline --help` answers at once.
"""

import functools
from importlib import metadata
from typing import Any

import click

from pipeline.command_line import CONTEXT, Commands, configurable, device_option, given, say_next, several


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(metadata.version("scan-pipeline"), prog_name="scan-pipeline")
def main() -> None:
    """Photos in, ranked photos out: Visual Genome region features and Stacked Cross Attention (SCAN).

    \b
        scan-pipeline extract --images coco/train2014
        scan-pipeline train
        scan-pipeline retrieve --query "two dogs play by a tree"
    """


@main.command()
@several("--images", metavar="DIR", help="Folder of photos, searched recursively. May be repeated.")
@click.option("--output", metavar="DIR", help="Store to write.  [default: features/<name of the last folder>]")
@click.option("--weights", metavar="FILE|NAME", help="Detector weights: a file of any known layout, or a hub name.")
@click.option("--selection", type=click.Choice(["caffe", "maxclass"]), help="How regions are chosen.  [default: caffe]")
@click.option("--num-regions", type=int, help="Regions per photo.  [default: 36]")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features.  [default: float16]")
@device_option()
@click.option(
    "--precision",
    type=click.Choice(["float32", "bf16", "fp16"]),
    help="Of the convolutions; the others are for GPUs.  [default: float32]",
)
@click.option("--batch-size", type=int, help="Photos per forward pass.")
@click.option("--workers", type=int, help="Decoding processes.")
@click.option("--limit", type=int, help="Only the first N photos.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Who does the work.  [default: local]")
@click.option("--retry-failures", is_flag=True, default=None, help="Try again the photos that failed before.")
@configurable("extract")
def extract(config: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Write the region features of every photo in a folder into a store.

    Killed at any moment, the same command continues. Photos that cannot be read become rows of failures.jsonl.
    """
    from pipeline import extract as stage
    from pipeline.config import load_config

    settings = load_config(stage.ExtractConfig, group="extract", config=config, overrides=overrides, options=options)
    store = stage.run(settings)
    click.echo(f"{store.path}: {len(store):,} photos, {store.num_regions} regions of {store.feature_dim} numbers each")
    if not store.manifest["complete"]:
        click.echo("not complete: other processes are at work on it, or a --limit was set; the same command continues")
    say_next("scan-pipeline train", f"scan-pipeline inspect {store.path}")


@main.command()
@click.argument("store", type=click.Path())
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read every byte and compare checksums.")
@click.option("--repair", is_flag=True, help="Set aside what is damaged (in STORE/damaged), rebuild what can be.")
def inspect(store: str, verify: bool, repair: bool) -> None:
    """Print what a feature store holds and verify its checksums.

    Exit code 0: whole, though an extraction may have to go on. 1: damaged; with --repair: mended, but the command that
    made the store has to make something again. Without --repair nothing is changed.
    """
    from pipeline.store.inspect import inspect_store
    from pipeline.store.repair import repair_store

    report = (repair_store if repair else inspect_store)(store, verify=verify)
    click.echo(str(report))
    if not report.ok:
        raise SystemExit(1)


@main.command("train-detector")
@click.option("--visual-genome", metavar="DIR", help="Visual Genome's JSON files, and its photos in VG_100K*.")
@click.option("--coco", metavar="DIR", help="Instead: COCO, with annotations/instances_train*.json and its photos.")
@several("--images", metavar="DIR", help="Folder of Visual Genome's photos, if they are elsewhere. May be repeated.")
@several(
    "--held-out",
    metavar="FILE",
    help="COCO images not to train on: dataset_coco.json, captions, or ids. May be repeated.",
)
@click.option("--objects", metavar="FILE", help="Classes, one a line, synonyms after commas.  [default: VG's 1600]")
@click.option("--attributes", metavar="FILE|none", help="As --objects.  [default: Visual Genome's 400]")
@click.option("--init", metavar="FILE|NAME|none", help="Network to start from.  [default: ImageNet's, from the hub]")
@click.option("--run", metavar="DIR", help="Run folder.  [default: detectors/<preset>]")
@click.option("--steps", type=int, help="Updates.")
@click.option("--batch-size", type=int, help="Images an update, over all processes.")
@click.option("--workers", type=int, help="Processes that read images.")
@click.option("--evaluate-only", is_flag=True, default=None, help="Judge the run, or --init, on the held-out images.")
@device_option()
@configurable("train-detector")
def train_detector(
    config: str | None, overrides: tuple[str, ...], steps: int | None, batch_size: int | None, **options: Any
) -> None:
    """Train the region detector on Visual Genome's annotations, or on COCO's.

    Killed at any moment, the same command continues from the last checkpoint. Under torchrun every process trains.
    """
    from pipeline import train_detector as stage
    from pipeline.config import load_config

    options |= {"training.steps": steps, "training.batch_size": batch_size}
    settings = load_config(
        stage.TrainDetectorConfig, group="train-detector", config=config, overrides=overrides, options=options
    )
    trained = stage.run(settings, say=click.echo)
    if not trained.is_main:
        return
    click.echo(f"{trained.weights}: {trained.result}")
    say_next(f"scan-pipeline extract --images DIR --weights {trained.weights}")


@main.command("convert-weights")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
def convert_weights(source: str, target: str) -> None:
    """Convert detector weights of any known layout to this project's safetensors."""
    from pathlib import Path

    from detector.weights import convert

    click.echo(str(convert(Path(source), Path(target))))
    say_next(f"scan-pipeline extract --images DIR --weights {target}")


@main.command("import-features")
@click.argument("source", type=click.Path())
@click.option("--format", type=click.Choice(["original", "tsv", "npz", "hdf5"]), help="[default: told from SOURCE]")
@click.option("--split", help="Of the original layout: reads SPLIT_ims.npy, SPLIT_caps.txt and SPLIT_ids.txt.")
@click.option("--output", metavar="DIR", help="Store to write.  [default: features/<folder>_<split>, or SOURCE's name]")
@click.option("--images", metavar="DIR", help="Folder of the photos, to show and to measure them.")
@click.option("--num-regions", type=int, help="Take the first K regions of every image.  [default: all]")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features.  [default: as found]")
@click.option("--boxes", metavar="FILE", help="For the original layout: .npy, (K, 4) fractions or (N, K, 4) pixels.")
@click.option("--ids", metavar="FILE", help="For HDF5 without image_ids: JSON list, JSON object id -> row, or text.")
def import_features(source: str, **options: Any) -> None:
    """Turn features that others computed into a store.

    SOURCE is a folder in the layout of the original SCAN code (with --split), a bottom-up attention TSV file (Caffe's or
    LXMERT's columns), a folder with one .npz an image (MILVLG), or an HDF5 file of VQA code.
    """
    from pipeline.interchange.convert import import_any

    store = import_any(source, say=functools.partial(click.echo, err=True), **options)
    click.echo(f"{store.path}: {len(store):,} photos, {store.num_regions} regions of {store.feature_dim} numbers each")
    say_next("scan-pipeline train", f"scan-pipeline inspect {store.path}")


@main.command("export-features")
@click.argument("store", type=click.Path())
@click.option(
    "--format",
    type=click.Choice(["original", "tsv", "tsv10", "npz", "hdf5"]),
    required=True,
    help="tsv has Caffe's six columns, tsv10 LXMERT's ten.",
)
@click.option("--output", metavar="FILE|DIR", required=True, help="File, or for original and npz folder, to write.")
@click.option("--split", help="For the original layout: which images, and the files' names.  [default: the store's]")
@click.option("--captions", metavar="FILE", help="For the original layout.  [default: looked for beside the photos]")
def export_features(store: str, output: str, **options: Any) -> None:
    """Write a store in a format of other code; import-features reads all of them back.

    Nothing takes its name before it is whole. What the format does not hold is said in the end.
    """
    from pipeline.interchange.convert import export_store

    opened = export_store(store, output, say=functools.partial(click.echo, err=True), **options)
    click.echo(f"{output}: written from {opened.path}")
    say_next(f"scan-pipeline import-features {output}{' --split SPLIT' if options['format'] == 'original' else ''}")


@main.command("import-checkpoint")
@click.argument("source", type=click.Path())
@click.option(
    "--vocabulary", required=True, metavar="FILE", help="Its vocabulary file, such as f30k_precomp_vocab.json."
)
@click.option("--output", metavar="DIR", help="Run folder to write.  [default: runs/<name of the checkpoint>]")
def import_checkpoint(source: str, vocabulary: str, output: str | None) -> None:
    """Turn a checkpoint of the original SCAN code into a run. Nothing in it is executed."""
    from pipeline.interchange.checkpoint import import_original

    imported = import_original(source, vocabulary, output)
    click.echo(str(imported))
    say_next(f"scan-pipeline evaluate --run {imported.run} --features DIR --captions FILE")


@main.command()
@several("--features", metavar="DIR", help="Store. May be repeated.  [default: every store under features/]")
@several("--captions", metavar="FILE", help="Captions file. May be repeated.  [default: looked for beside the photos]")
@click.option("--run", metavar="DIR", help="Run folder.  [default: runs/<preset>, or runs/<attention>_<pooling>]")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--text-encoder", metavar="NAME|DIR", help="A transformers encoder in the GRU's place.  [default: gru]")
@device_option()
@configurable("train")
def train(
    config: str | None,
    overrides: tuple[str, ...],
    epochs: int | None,
    batch_size: int | None,
    text_encoder: str | None,
    **options: Any,
) -> None:
    """Train SCAN on stores of region features and their captions.

    Killed at any moment, the same command continues from the last checkpoint.
    """
    from pipeline import train as stage
    from pipeline.config import load_config

    options |= {
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "model.text_encoder": text_encoder,
    }
    settings = load_config(stage.TrainConfig, group="train", config=config, overrides=overrides, options=options)
    trained = stage.run(settings, report=click.echo)
    if not trained.is_main:
        return
    click.echo(f"{trained.run}: {trained.result}")
    say_next(
        f"scan-pipeline evaluate --run {trained.run}",
        f'scan-pipeline retrieve --run {trained.run} --query "two dogs play by a tree"',
    )


@main.command()
@several("--run", "runs", metavar="DIR", help="Run folder; several are averaged as an ensemble.  [default: newest]")
@several("--features", metavar="DIR", help="Store.  [default: those of the run]")
@several("--captions", metavar="FILE", help="Captions file.  [default: those of the run]")
@click.option("--split", help="train, dev, test or all.  [default: test where there is one, else dev]")
@click.option("--folds", type=int, help="Also average over N folds of images.  [default: 5 for 5,000 images]")
@click.option(
    "--bootstrap", type=int, help="Also 95 % intervals of the recalls from N bootstrap samples of the images."
)
@click.option("--eccv", is_flag=True, default=None, help="Also ECCV Caption and CxC (COCO 5K; needs eccv_caption).")
@click.option("--html", metavar="FILE", help="Also a page: recalls, ranks, training curves, the worst mistakes.")
@click.option("--latex", is_flag=True, default=None, help="Also a LaTeX row.")
@click.option("--verify", is_flag=True, help="Exit code 1 where rsum falls short of the preset's expected value.")
@device_option()
def evaluate(**options: Any) -> None:
    """Recalls for both tasks, printed and written to the run folder."""
    from pipeline import evaluate as stage

    evaluation = stage.run(stage.EvaluateConfig(**given(options)), report=click.echo)
    click.echo(str(evaluation))
    if not evaluation.verified:
        raise SystemExit(1)


@main.command()
@several("--query", metavar="TEXT", help="Sentence to find photos for. May be repeated.")
@click.option("--queries", metavar="FILE", help="Text file of more sentences, one a line.")
@several("--image", metavar="ID|PATH", help="Photo to find captions for. May be repeated.")
@click.option("--run", metavar="DIR", help="Run folder.  [default: newest]")
@several("--features", metavar="DIR", help="Store to search.  [default: every store under features/ that fits]")
@several("--captions", metavar="FILE", help="Captions to search.  [default: those of the run]")
@click.option("--top", type=int, help="Results per query.  [default: 10]")
@click.option("--weights", metavar="FILE|NAME", help="Detector for a photo that is in no store.")
@click.option("--picture", metavar="FILE", help="Also draw the photos found, side by side with their best regions.")
@click.option("--html", metavar="FILE", help="Also write a self-contained page of the answers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@device_option()
def retrieve(as_json: bool, **options: Any) -> None:
    """Photos for a sentence, or captions for a photo."""
    from pipeline import retrieve as stage

    answers = stage.run(stage.RetrieveConfig(**given(options)), say=functools.partial(click.echo, err=True))
    click.echo(stage.to_json(answers) if as_json else "\n\n".join(map(str, answers)))


@main.command()
@several("--run", "runs", metavar="DIR", help="Run folder; several share the picture.  [default: newest]")
@click.option("--output", metavar="FILE", default="curves.png", show_default=True, help="A .png, .pdf or .svg.")
def plot(runs: tuple[str, ...], output: str) -> None:
    """Training curves of one or several runs as a picture."""
    from pathlib import Path

    from pipeline.pages.plots import save, training_curves
    from pipeline.runs import find_run

    save(training_curves([find_run(run) for run in runs or (None,)]), Path(output))
    click.echo(output)


@main.command()
@click.option("--image", required=True, metavar="ID|PATH", help="A photo of a store, or any photo.")
@click.option("--caption", required=True, metavar="TEXT", help="The sentence to explain the match with.")
@click.option("--run", metavar="DIR", help="Run folder.  [default: newest]")
@click.option(
    "--output", metavar="FILE", help="A .png, .jpg or .pdf, or .html to hover over.  [default: explanation.png]"
)
@click.option("--attention", type=click.Choice(["t2i", "i2t"]), help="Direction to show.  [default: the run's]")
@several("--features", metavar="DIR", help="Store.  [default: every store under features/ that fits]")
@click.option("--weights", metavar="FILE|NAME", help="Detector for a photo that is in no store.")
@device_option()
def explain(**options: Any) -> None:
    """Why a photo matched: for each word, where it looks and what it did for the score."""
    from pipeline import explain as stage

    config = stage.ExplainConfig(**given(options))
    explanation = stage.run(config, say=functools.partial(click.echo, err=True))
    for word, score, region in explanation.table():
        click.echo(f"{score:+8.3f}  {word:16} {region}".rstrip())
    click.echo(f"{config.output}: {explanation.image}, score {explanation.score:.4f}")


@main.command()
@click.option("--run", metavar="DIR", help="Run folder.  [default: newest]")
@several("--features", metavar="DIR", help="Store to search.  [default: every store under features/ that fits]")
@click.option("--weights", metavar="FILE|NAME", help="Detector for uploaded photos.")
@click.option("--host", help="Address to listen on; 0.0.0.0 lets other machines in.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="[default: 7860]")
@device_option()
def app(**options: Any) -> None:
    """Search as you type, in a browser. Needs the extra: pip install 'scan-pipeline[app]'."""
    from pipeline.pages import app as stage

    stage.serve(stage.AppConfig(**given(options)), say=click.echo)


@main.command()
@click.option("--output", metavar="DIR", help="Folder for everything.  [default: demo]")
@click.option("--quick", is_flag=True, default=None, help="Two minutes instead of ten, at lower quality.")
@click.option("--seed", type=int, help="Of the world that is drawn.  [default: 0]")
@device_option()
def demo(**options: Any) -> None:
    """The whole pipeline on a world that it draws itself: no download, no GPU.

    Prints every command before it runs it. Exit code 1 where the held-out scenes fall short of what is promised.
    """
    from pipeline.demo import run as stage

    if not stage.run(stage.DemoConfig(**given(options)), say=click.echo).reached:
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def doctor(as_json: bool) -> None:
    """What works here, what is missing and what to do next. Exit code 1 when something needed is broken."""
    from pipeline.doctor import report

    checks: list[report.Check] = []
    for check in report.examine():
        if not as_json:
            click.echo(check if checks and checks[-1].section == check.section else f"{check.section}\n{check}")
        checks.append(check)
    if as_json:
        click.echo(report.to_json(checks))
    else:
        say_next(*report.next_steps(checks))
    if not report.healthy(checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
