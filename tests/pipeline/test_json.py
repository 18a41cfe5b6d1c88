"""What JSON cannot say silently."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import UserError
from matcher.vocabulary import Vocabulary
from pipeline.annotations import coco, visual_genome
from pipeline.annotations.records import Report
from pipeline.files import read_json
from pipeline.inputs.captions import read_captions
from pipeline.interchange.hdf5 import _ids_from


@pytest.mark.parametrize(
    ("read", "text", "key"),
    [
        (read_captions, '{"images": [], "images": [], "annotations": []}', "images"),
        (read_captions, '{"images": [{"id": 1, "file_name": "a.jpg", "file_name": "b.jpg"}]}', "file_name"),
        (lambda path: coco._read(path.parent, path, Report()), '{"categories": [{"id": 1, "id": 2}]}', "id"),
        (lambda path: visual_genome.read_held_out([path]), '{"images": [{"cocoid": 1, "cocoid": 2}]}', "cocoid"),
        (lambda path: visual_genome._read_list(path.parent, path.stem), '[{"image_id": 1, "image_id": 2}]', "image_id"),
        (lambda path: _ids_from(path, 2), '{"a.jpg": 0, "a.jpg": 1}', "a.jpg"),
        (Vocabulary.from_json, '{"word2idx": {"dog": 0, "cat": 1, "cat": 2}}', "cat"),
        (lambda path: read_json(path, "a run's identity"), '{"data": {}, "data": {}}', "data"),
    ],
)
def test_a_key_that_stands_twice_is_refused(
    tmp_path: Path, read: Callable[[Path], object], text: str, key: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"file\.json: .*duplicate key '{key}'"):
        read(path)
