"""Repairing a store. Damaged files are set aside; nothing is deleted but the temporary files of killed processes.

shard                     its commit mark and tensors move to damaged/; the command that made the store makes them again
manifest                  moves to damaged/; the next extract writes it, if its settings are those of the shards
plan                      rebuilt from the commit marks
failures.jsonl, counts    derived from the commit marks
"""

import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from pipeline.files import locked, remove_abandoned
from pipeline.store.format import DAMAGED, MANIFEST, PLAN, commit_marks
from pipeline.store.inspect import Damage, StoreReport, inspect_store
from pipeline.store.manifest import made_elsewhere
from pipeline.store.marks import read_mark
from pipeline.store.plan import read_plan, rebuilt_plan, write_plan
from pipeline.store.writer import write_summary


def repair_store(path: Path | str, *, verify: bool = True, progress: bool = True) -> StoreReport:
    """Inspect a store, and repair what can be repaired without loss; the report is of its state afterwards.

    Raises:
        PipelineError: no store there, or a folder that cannot be written to.
    """
    path = Path(path)
    inspect_store(path, verify=False, progress=False)  # a folder of something else stays as it is
    with locked(path):  # a running extraction waits with its next shard
        before = inspect_store(path, verify=verify, progress=progress)
        # Shards first: a plan is rebuilt from those that are left
        shards_first = sorted(before.damaged, key=lambda damage: damage.part != "shard")
        repairs = [line for damage in shards_first for line in _repair(path, damage, before)]
        if removed := remove_abandoned(path):
            repairs.append(f"{removed} temporary files of killed processes: removed")
    if before.manifest is not None:
        write_summary(path, before.manifest, _planned_shards(before))
        repairs += [f"{name}: written again" for name in before.behind]
    after = inspect_store(path, verify=False, progress=False)
    lost = after.manifest is None
    damaged = [damage for damage in after.damaged if damage.part != "manifest"]
    to_redo = lost or any(damage.part in ("shard", "shards") for damage in before.damaged)
    return replace(after, damaged=damaged, verified=verify, repairs=repairs, to_redo=to_redo)


def _repair(folder: Path, damage: Damage, before: StoreReport) -> list[str]:
    """What was done about one damage; the store is locked."""
    if damage.part == "shard":
        _set_aside(damage.path)  # first: without its mark the shard does not exist
        if damage.path.with_suffix(".safetensors").is_file():
            _set_aside(damage.path.with_suffix(".safetensors"))
        return [f"{damage.path.stem}: moved to {folder / DAMAGED} ({damage.found})"]
    if damage.part == "manifest" and damage.path.is_file():
        _set_aside(damage.path)
        return [f"{MANIFEST}: moved to {folder / DAMAGED} ({damage.found})"]
    if damage.part == "plan":
        marks = [read_mark(path) for path in commit_marks(folder)]
        if before.manifest is None and any(mark.paths != mark.image_ids for mark in marks):
            return []  # photos of several folders: the manifest is needed first
        write_plan(folder, rebuilt_plan(marks, before.manifest["image_roots"] if before.manifest else []))
        return [f"{PLAN}: rebuilt from {len(marks)} commit marks"]
    return [damage.found] if damage.part == "shards" else []


def _planned_shards(before: StoreReport) -> int:
    """Number of shards that the store has once it is complete."""
    if before.manifest is None or not made_elsewhere(before.manifest):
        return len(read_plan(before.path))
    return before.manifest["counts"]["shards"] if before.manifest["complete"] else sys.maxsize


def _set_aside(path: Path) -> None:
    """Move a file to the damaged ones, under a name that none of them has."""
    folder = path.parent / DAMAGED
    folder.mkdir(exist_ok=True)
    names = (path.name if number == 0 else f"{path.name}.{number}" for number in count())
    os.rename(path, next(folder / name for name in names if not (folder / name).exists()))
