"""Weights files: reading every known layout without running anything in it, writing our own, finding them.

Our own layout is a safetensors file; its metadata holds the configuration and the class names, so that nothing about
a detector has to be guessed.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from configs.errors import first_line
from configs.files import write_atomically
from detector.boxes import cell_anchors
from detector.config import DetectorConfig
from detector.errors import DetectorError
from detector.layouts import LAYOUTS, check_shapes, normalize
from detector.vocabulary import default_names

FORMAT = "scan-pipeline/detector"


@dataclass(frozen=True)
class Weights:
    """A detector, ready to be loaded."""

    config: DetectorConfig
    tensors: dict[str, Tensor]
    object_names: list[str]
    attribute_names: list[str]
    layout: str
    sha256: str  # of the normalised tensors: the same network has the same hash in every layout


def load_weights(path: Path) -> Weights:
    """Read a weights file of any known layout.

    Raises:
        DetectorError: missing, damaged, of no known layout, or a pickle that would run code.
    """
    metadata, state = _read(path)
    if metadata is not None:
        return _own_weights(path, metadata, state)
    layout, config, tensors = normalize(state, str(path))
    tensors.setdefault("cell_anchors", cell_anchors(config.geometry, config.anchor_sizes, config.anchor_ratios))
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    check_shapes(config, tensors, str(path))
    objects, attributes = default_names(config)
    return Weights(config, tensors, objects, attributes, layout, _hash(tensors))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file: safetensors, torch's own, or a pickle of arrays. Nothing in it is run.

    Raises:
        DetectorError: missing, damaged, or a file that would run code.
    """
    return _read(path)[1]


def save_weights(
    path: Path,
    config: DetectorConfig,
    tensors: Mapping[str, Tensor],
    *,
    object_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
) -> None:
    """Write a detector in our own layout.

    Args:
        path: file to write; written to a temporary name first.
        config: of the network.
        tensors: `FasterRCNN(config).state_dict()`.
        object_names, attribute_names: None takes the Visual Genome vocabulary where its size fits.
    """
    objects, attributes = default_names(config)
    content = {
        "config": asdict(config),
        "object_names": list(object_names or objects),
        "attribute_names": list(attribute_names or attributes),
    }
    metadata = {FORMAT: json.dumps(content)}  # one entry: safetensors writes several in no fixed order
    numbers = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(numbers, metadata))  # save_file would make it readable for its owner alone


def convert(source: Path, target: Path) -> str:
    """Rewrite a weights file of any known layout as our safetensors; one line that says what it was.

    Raises:
        DetectorError: as `load_weights`, or a target that does not end in .safetensors, or exists.
    """
    if target.suffix != ".safetensors":
        raise DetectorError(f"{target}: expected a name that ends in .safetensors")
    if target.exists():
        raise DetectorError(f"{target}: exists already; delete it, or choose another name")
    weights = load_weights(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        target,
        weights.config,
        weights.tensors,
        object_names=weights.object_names,
        attribute_names=weights.attribute_names,
    )
    config = weights.config
    return (
        f"{target}: {weights.layout} layout, ResNet-{config.depth}, {config.num_objects} objects, "
        f"{config.num_attributes} attributes, {config.geometry} boxes, background {config.background}"
    )


def _read(path: Path) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    """Metadata, of safetensors alone, and tensors."""
    if not path.is_file():
        raise DetectorError(f"{path}: no such weights file")
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] != b"{":
        return None, _load_torch(path) if start.startswith(b"PK") else _load_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DetectorError(f"{path}: damaged or truncated ({error})", "download or convert it again") from error


def _own_weights(path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Weights:
    if FORMAT not in metadata:
        raise DetectorError(f"{path}: safetensors without this project's metadata; expected one of: {LAYOUTS}")
    content = json.loads(metadata[FORMAT])
    known = {field.name for field in fields(DetectorConfig)}
    values: dict[str, Any] = content["config"]
    if unknown := sorted(values.keys() - known):
        raise DetectorError(f"{path}: written by a newer version (unknown field {unknown[0]})", "update scan-pipeline")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    config = replace(DetectorConfig(), **values)
    check_shapes(config, tensors, str(path))
    return Weights(
        config, tensors, content["object_names"], content["attribute_names"], "scan-pipeline", _hash(tensors)
    )


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise DetectorError(f"{path}: refused: it holds more than tensors, and could run code when loaded") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DetectorError(f"{path}: damaged or truncated ({first_line(error)})", "download it again") from error
    return _tensors(content, path)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of dictionaries, strings, numbers and NumPy arrays. Any other global is refused, never called."""

    ALLOWED = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")]
        + [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise DetectorError(f"refused: it asks for {module}.{name}, and could run code when loaded")
        return super().find_class(module, name)


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except DetectorError as error:
        raise DetectorError(f"{path}: {error}; expected one of: {LAYOUTS}") from error
    except Exception as error:  # a damaged pickle fails in any way it likes
        found = type(error).__name__
        raise DetectorError(f"{path}: not a weights file, or damaged ({found}); expected {LAYOUTS}") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise DetectorError(f"{path}: holds a {type(content).__name__}; expected named tensors: {LAYOUTS}")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            tensors[str(name)] = torch.from_numpy(np.array(value))
        elif isinstance(value, Tensor):
            tensors[str(name)] = value
    return tensors


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
