"""What a store holds, and whether every byte of it is as it was written. Inspecting changes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.files import file_sha256
from pipeline.errors import PipelineError, printable
from pipeline.files import temporary_files
from pipeline.store.format import FAILURES, MANIFEST, PLAN, commit_mark, commit_marks
from pipeline.store.manifest import counts, made_elsewhere, read_manifest, settings_sha256, way_to_complete
from pipeline.store.marks import Mark, read_mark
from pipeline.store.plan import PlannedShard, check_roots, is_as_planned, read_plan
from pipeline.store.reader import Shard
from pipeline.store.tensors import map_safetensors
from pipeline.store.writer import failure_line

REASONS_SHOWN = 5


@dataclass(frozen=True)
class Damage:
    """A part of a store that is not as it was written."""

    part: str  # "manifest", "plan", "shard" (path is its commit mark) or "shards" (some are gone)
    path: Path
    found: str  # one line


@dataclass(frozen=True)
class StoreReport:
    """The state of a store; its string is for people."""

    path: Path
    manifest: dict[str, Any] | None  # None: lost, or damaged
    images: int
    shards: int
    planned: int  # images of the plan; 0 for imported stores
    failures: dict[str, int]  # reason -> photos
    damaged: list[Damage]
    behind: list[str]  # derived files that differ from the commit marks, as after every kill
    left_over: list[str]  # files of a killed process, which do no harm
    bytes: int
    verified: bool
    repairs: list[str] = field(default_factory=list)  # what a repair did
    to_redo: bool = False  # after a repair, the command that made the store has shards to make again

    @property
    def ok(self) -> bool:
        """Nothing is damaged, and a repair left no shard to make again."""
        return not self.damaged and not self.to_redo

    @property
    def state(self) -> str:
        """What remains to be extracted."""
        missing = max(0, self.planned - self.images - sum(self.failures.values()))
        if missing:
            return f"{missing:,} of {self.planned:,} photos to extract: run extract again"
        if made_elsewhere(self.manifest) and not self.manifest["complete"]:
            return f"not complete: {way_to_complete(self.manifest)}"
        return "complete"

    def __str__(self) -> str:
        size = f"{self.images:,} images in {self.shards} shards, {self.bytes / 1e6:,.1f} MB"
        lines = [f"{self.path}: {size}, {self.state if self.manifest else 'without a manifest'}"]
        lines += _described(self.manifest) if self.manifest else []
        lines.append(f"  failures  {sum(self.failures.values()):,}")
        reasons = sorted(self.failures.items(), key=lambda item: -item[1])
        lines += [f"    {count:6,}  {reason}" for reason, count in reasons[:REASONS_SHOWN]]
        lines += [f"  repaired  {line}" for line in self.repairs]
        lines += [f"  note      {name} differs from the commit marks, which count" for name in self.behind]
        lines += [f"  note      {line}" for line in self.left_over]
        lines += [f"  DAMAGED   {damage.found}" for damage in self.damaged]
        if self.to_redo:
            lines.append(f"  next: {way_to_complete(self.manifest)}")
        if self.damaged:
            lines.append(f"  repair it with: scan-pipeline inspect {self.path} --repair")
        elif self.verified and not self.to_redo:
            lines.append(f"  checksums of {self.shards} shards verified")
        return "\n".join(lines)


def inspect_store(path: Path | str, *, verify: bool = True, progress: bool = True) -> StoreReport:
    """Inspect a store; with `verify` off read only headers and counts, and no checksums of tensors.

    Raises:
        PipelineError: no store there.
    """
    path = Path(path)
    files = commit_marks(path)
    manifest, damaged = _read_manifest(path, files)
    plan, plan_damage = _read_plan(path, manifest, files)
    marks, damaged_shards, plan_differs = _check_shards(path, files, manifest, plan, verify, progress)
    damaged += damaged_shards
    if plan_damage or plan_differs:
        damaged.append(plan_damage or Damage("plan", path / PLAN, f"{path / PLAN}: does not plan what the shards hold"))
    if made_elsewhere(manifest) and manifest["complete"] and manifest["counts"].get("shards") != len(files):
        text = f"{path}: {len(files)} shards of {manifest['counts'].get('shards')}"
        damaged.append(Damage("shards", path, text))
    return StoreReport(
        path,
        manifest,
        images=sum(len(mark.image_ids) for mark in marks),
        shards=len(marks),
        planned=sum(len(shard.photos) for shard in plan),
        failures=dict(Counter(failure["reason"] for mark in marks for failure in mark.failures)),
        damaged=damaged,
        behind=_behind(path, manifest, marks, plan) if manifest is not None and not damaged else [],
        left_over=_left_over(path),
        bytes=sum((commit_mark(path, mark.number).with_suffix(".safetensors")).stat().st_size for mark in marks),
        verified=verify,
    )


def check_shard(file: Path, manifest: Mapping[str, Any] | None, verify: bool) -> Mark:
    """Read a commit mark and compare it and its tensors with what they were when they were written.

    Without a manifest, shapes and settings are not checked; without `verify`, the checksum of the tensors is not.

    Raises:
        PipelineError: they differ.
    """
    mark = read_mark(file)
    tensors = file.with_suffix(".safetensors")
    maps = Shard(file, manifest).tensors if manifest is not None else map_safetensors(tensors)
    if any(array.shape[:1] != (len(mark.image_ids),) for array in maps.values()):
        raise PipelineError(f"{tensors}: expected rows for the {len(mark.image_ids)} images of its mark")
    if verify and (found := file_sha256(tensors)) != mark.sha256:
        raise PipelineError(f"{tensors}: sha256 is {found[:12]}…, its commit mark says {mark.sha256[:12]}…")
    return mark


def _read_manifest(path: Path, files: Sequence[Path]) -> tuple[dict[str, Any] | None, list[Damage]]:
    """The manifest, None where it is damaged."""
    if not (path / MANIFEST).is_file() and (files or (path / PLAN).is_file()):
        return None, [Damage("manifest", path / MANIFEST, f"{path / MANIFEST}: lost")]
    try:
        manifest = read_manifest(path)
    except PipelineError as error:
        if not (path / MANIFEST).is_file():
            raise
        return None, [Damage("manifest", path / MANIFEST, error.message)]
    made_with = set()
    for file in files:
        with suppress(PipelineError):
            made_with.add(read_mark(file).settings_sha256)
    if made_with and settings_sha256(manifest) not in made_with:  # one shard may be foreign, not all of them
        text = "its settings are not those that the shards were made with"
        return None, [Damage("manifest", path / MANIFEST, f"{path / MANIFEST}: {text}")]
    return manifest, []


def _read_plan(
    path: Path, manifest: Mapping[str, Any] | None, files: Sequence[Path]
) -> tuple[list[PlannedShard], Damage | None]:
    """The plan, empty where it is damaged."""
    try:
        plan = read_plan(path)
        if manifest is not None:
            check_roots(path, plan, len(manifest["image_roots"]))
            if not plan and files and not made_elsewhere(manifest):
                raise PipelineError(f"{path / PLAN}: lost")
    except PipelineError as error:
        return [], Damage("plan", path / PLAN, error.message)
    return plan, None


def _check_shards(
    path: Path,
    files: Sequence[Path],
    manifest: Mapping[str, Any] | None,
    plan: Sequence[PlannedShard],
    verify: bool,
    progress: bool,
) -> tuple[list[Mark], list[Damage], bool]:
    """Marks of the undamaged shards, damage, and whether the plan is wrong."""
    planned = {shard.number: shard for shard in plan}
    marks, damaged, plan_differs = [], [], False
    holder: dict[str, str] = {}  # image id -> name of the mark
    for file in tqdm(files, unit="shard", desc=printable(path.name), disable=not progress, leave=False):
        try:
            mark = check_shard(file, manifest, verify)
            if shared := sorted(mark.all_ids & holder.keys()):
                raise PipelineError(
                    f"{file}: duplicate image ids: {len(shared)} are in {holder[shared[0]]} as well ({shared[0]!r})"
                )
            if plan and not is_as_planned(mark, planned.get(mark.number)):
                # The plan is wrong where it ends before the mark or has an image in common with it; else the mark is.
                shard = planned.get(mark.number)
                if shard and mark.all_ids.isdisjoint(photo.image_id for photo in shard.photos):
                    raise PipelineError(f"{file}: holds other images than {PLAN} says")
                plan_differs = True
        except PipelineError as error:
            damaged.append(Damage("shard", file, error.message))
        else:
            holder.update(dict.fromkeys(mark.all_ids, file.name))
            marks.append(mark)
    return marks, damaged, plan_differs


def _behind(path: Path, manifest: Mapping[str, Any], marks: Sequence[Mark], plan: Sequence[PlannedShard]) -> list[str]:
    failures = [failure for mark in marks for failure in mark.failures]
    wanted = counts(sum(len(mark.image_ids) for mark in marks), len(failures), len(marks))
    complete = manifest["complete"] if made_elsewhere(manifest) else len(marks) >= len(plan)
    names = []
    if (manifest["counts"], manifest["complete"]) != (wanted, complete):
        names.append(MANIFEST)
    rows = b"".join(map(failure_line, failures))
    if not (path / FAILURES).is_file() or (path / FAILURES).read_bytes() != rows:
        names.append(FAILURES)
    return names


def _left_over(path: Path) -> list[str]:
    lines = []
    if temporary := temporary_files(path):
        lines.append(f"{len(temporary)} temporary files, of a running or a killed process")
    unmarked = [file for file in sorted(path.glob("shard-*.safetensors")) if not file.with_suffix(".json").is_file()]
    if unmarked:
        lines.append(f"{len(unmarked)} shards without a commit mark, which do not count ({unmarked[0].name})")
    return lines


def _described(manifest: Mapping[str, Any]) -> list[str]:
    features = f"{manifest['num_regions']} regions x {manifest['feature_dim']} {manifest['dtype']}"
    objects, attributes = len(manifest["object_names"]), len(manifest["attribute_names"])
    return [
        f"  features  {features}{'' if manifest['has_boxes'] else ', no boxes'}",
        f"  made by   {_maker(manifest['extraction'])}",
        f"  photos    {', '.join(manifest['image_roots']) or 'not recorded'}",
        f"  classes   {f'{objects:,} objects, {attributes:,} attributes' if objects else 'not recorded'}",
    ]


def _maker(extraction: Mapping[str, Any]) -> str:
    """What the features were made with, in one line."""
    if "imported" in extraction:
        return f"another program; imported from {extraction['imported']}"
    parts = [f"weights {str(extraction.get('weights_sha256', 'unknown'))[:12]}…"]
    if "network" in extraction:
        parts.insert(0, f"{extraction.get('source')} pooled from {extraction['network']}")
    if "selection" in extraction:
        parts.insert(0, f"detector with {extraction['selection']} selection")
    return ", ".join([*parts, *([str(extraction["precision"])] if "precision" in extraction else [])])
