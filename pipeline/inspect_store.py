"""What a store holds, and whether every byte of it is as it was written."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.plan import PLAN, read_plan
from pipeline.shards import Shard, commit_marks, read_manifest

READ_BYTES = 1 << 22
REASONS_SHOWN = 5


@dataclass(frozen=True)
class StoreReport:
    """The state of a store; its string is for people."""

    path: Path
    manifest: dict[str, Any]
    images: int
    shards: int
    planned: int  # images that the extraction set out to do; 0 for imported stores
    failures: dict[str, int]  # reason -> photos
    damaged: list[str]  # one line per shard that is not as it was written
    bytes: int
    verified: bool

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged

    def __str__(self) -> str:
        manifest, extraction = self.manifest, self.manifest["extraction"]
        failed = sum(self.failures.values())
        missing = max(0, self.planned - self.images - failed)
        state = f"{missing:,} of {self.planned:,} photos to do: run extract again" if missing else "complete"
        made_by = extraction.get("imported") or (
            f"{extraction['selection']} selection, weights sha256 {extraction['weights_sha256'][:12]}…"
            if "weights_sha256" in extraction
            else "unknown"
        )
        lines = [
            f"{self.path}: {self.images:,} images in {self.shards} shards, {self.bytes / 1e6:,.1f} MB, {state}",
            f"  features  {manifest['num_regions']} regions x {manifest['feature_dim']} {manifest['dtype']}"
            f"{'' if manifest['has_boxes'] else ', no boxes'}",
            f"  made by   {made_by}",
            f"  photos    {', '.join(manifest['image_roots']) or 'not recorded'}",
            f"  classes   {len(manifest['object_names'])} objects, {len(manifest['attribute_names'])} attributes",
            f"  failures  {failed:,}",
        ]
        reasons = sorted(self.failures.items(), key=lambda item: -item[1])
        lines += [f"    {count:6,}  {reason}" for reason, count in reasons[:REASONS_SHOWN]]
        if self.damaged:
            lines += [f"  DAMAGED   {line}" for line in self.damaged]
            lines.append("  to mend: delete the .json of each damaged shard and run the extraction again")
        elif self.verified:
            lines.append(f"  checksums of {self.shards} shards verified")
        return "\n".join(lines)


def inspect_store(path: Path | str, *, verify: bool = True, progress: bool = True) -> StoreReport:
    """Look a store over.

    Args:
        path: store folder.
        verify: read every shard and compare its sha256; else only headers and counts.
        progress: show a bar while reading.

    Raises:
        PipelineError: no store there, or a manifest that cannot be read.
    """
    path = Path(path)
    manifest = read_manifest(path)
    damaged: list[str] = []
    failures: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    size = 0
    marks = commit_marks(path)
    for mark in tqdm(marks, unit="shard", desc=path.name, disable=not progress, leave=False):
        try:
            shard = Shard(mark, manifest)
            seen.update(shard.image_ids)
            failures.update(failure["reason"] for failure in shard.failures)
            _check(shard, verify)
            size += shard.path.stat().st_size
        except PipelineError as error:
            damaged.append(str(error))
    damaged += [f"{image_id}: in {count} shards" for image_id, count in seen.items() if count > 1]
    planned = sum(len(shard.photos) for shard in read_plan(path)) if (path / PLAN).is_file() else 0
    return StoreReport(path, manifest, len(seen), len(marks), planned, dict(failures), damaged, size, verify)


def _check(shard: Shard, verify: bool) -> None:
    _ = shard.tensors  # header, shapes and size
    if not verify:
        return
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != shard.sha256:
        raise PipelineError(
            f"{shard.path}: sha256 is {digest.hexdigest()[:12]}…, its commit mark says {shard.sha256[:12]}…"
        )
