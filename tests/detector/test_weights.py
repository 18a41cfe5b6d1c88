import os
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import close_session
from torch import Tensor

from detector import locate
from detector.errors import DetectorError
from detector.locate import find_weights
from detector.weights import Weights, convert, load_weights

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


@pytest.fixture(scope="module")
def small(small_weights: Path) -> Weights:
    return load_weights(small_weights)


def lxmert(weights: Weights) -> dict[str, Tensor]:
    """The layout of LXMERT's pytorch_model.bin."""
    state = {name: tensor for name, tensor in weights.tensors.items() if name != "cell_anchors"}
    state[ANCHORS] = weights.tensors["cell_anchors"]
    state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(0)
    return state


def test_every_layout_of_one_network_has_one_hash(small: Weights, tmp_path: Path) -> None:
    torch.save(lxmert(small), tmp_path / "pytorch_model.bin")
    state = lxmert(small)
    del state[ANCHORS]
    with (tmp_path / "airsplay.pkl").open("wb") as file:
        pickle.dump({"model": {name: tensor.numpy() for name, tensor in state.items()}, "__author__": "x"}, file)
    for name, layout in (("pytorch_model.bin", "lxmert"), ("airsplay.pkl", "airsplay")):
        found = load_weights(tmp_path / name)
        assert found.layout == layout
        # The layouts carry no input size or vocabulary: those of the published network are assumed.
        assert found.config.depth == 18
        assert found.config.width == 8
        assert found.sha256 == small.sha256


def test_convert_keeps_everything(small: Weights, tmp_path: Path) -> None:
    torch.save(lxmert(small), tmp_path / "a.bin")
    said = convert(tmp_path / "a.bin", tmp_path / "new" / "b.safetensors")
    assert "lxmert layout, ResNet-18, 12 objects, 5 attributes" in said
    found = load_weights(tmp_path / "new" / "b.safetensors")
    assert found.layout == "scan-pipeline"
    assert found.sha256 == small.sha256
    assert found.object_names == [f"object {index}" for index in range(12)]
    with pytest.raises(DetectorError, match=r"b\.safetensors: exists already; delete it, or choose another name"):
        convert(tmp_path / "a.bin", tmp_path / "new" / "b.safetensors")


def test_milvlg_is_told_by_its_objectness(small: Weights, tmp_path: Path) -> None:
    state = to_milvlg(lxmert(small))
    torch.save({"model": state}, tmp_path / "bua.pth")
    found = load_weights(tmp_path / "bua.pth")
    assert (found.layout, found.config.geometry, found.config.background) == ("milvlg", "inclusive", "first")
    assert found.config.box_weights == (1.0, 1.0, 1.0, 1.0)
    name = "proposal_generator.rpn_head.objectness_logits.weight"
    torch.testing.assert_close(found.tensors[name], small.tensors[name], rtol=1e-5, atol=1e-7)


def to_milvlg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The MILVLG layout of the same numbers: background first, two objectness channels per anchor, other names."""
    names = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}
    out = {}
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(f"box_predictor.{ours}.", f"box_predictor.{theirs}.")
        if any(part in name for part in ("cls_score", "cls_embed", "attr_linear2")):
            tensor = torch.cat([tensor[-1:], tensor[:-1]])
        if "bbox_pred" in name:
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        if "objectness" in name:
            tensor = torch.cat([torch.full_like(tensor, 0.5), tensor + 0.5])
        if name != ANCHORS:
            out[name] = tensor
    return out


class Evil:
    """Would run a command when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch it_ran",)


def write_pickle(path: Path, content: object) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_pickle(path, {"model": Evil()}), "refused: it asks for posix.system"),
        (lambda path: torch.save({"model": Evil()}, path), "refused: it holds more than tensors"),
        (lambda path: write_pickle(path, [1, 2]), "holds a list; expected named tensors"),
        (lambda path: write_pickle(path, {"model": {"a": np.zeros(3)}}), r"no proposal_generator.* in it \(found a"),
        (lambda path: torch.save({"fc.weight": torch.zeros(2)}, path), r"found fc.weight"),
        (lambda path: path.write_bytes(b""), "not a weights file, or damaged"),
        (lambda path: path.write_bytes(b"PK\x03\x04 not really"), "damaged or truncated"),
        (lambda path: path.write_text("<html>404</html>"), "not a weights file, or damaged"),
    ],
    ids=["evil-pickle", "evil-torch", "list", "foreign-pickle", "foreign-torch", "empty", "broken-zip", "html"],
)
def test_what_is_no_detector_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.bin"
    write(path)
    with pytest.raises(DetectorError, match=message) as error:
        load_weights(path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "it_ran").exists()


def test_wrong_shapes_name_the_parameter(small: Weights, tmp_path: Path) -> None:
    state = lxmert(small)
    name = "roi_heads.box_predictor.fc_attr.weight"
    state[name] = state[name][:, :-1]
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(DetectorError, match=r"fc_attr.weight is \(512, 319\), expected \(512, 320\)"):
        load_weights(tmp_path / "a.bin")


def test_truncated_files_of_both_kinds_are_refused(small: Weights, small_weights: Path, tmp_path: Path) -> None:
    torch.save(lxmert(small), tmp_path / "a.bin")
    for source in (tmp_path / "a.bin", small_weights):
        cut = tmp_path / f"cut{source.suffix}"
        cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        with pytest.raises(DetectorError, match="damaged or truncated"):
            load_weights(cut)


def test_weights_are_looked_for_in_order(small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    monkeypatch.setattr("detector.hub._unreachable", lambda _: "offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DetectorError) as error:
        find_weights()
    for way in ("--weights FILE", "OWNER/REPOSITORY", "SCAN_PIPELINE_WEIGHTS", str(tmp_path / "scan-pipeline/weights")):
        assert way in str(error.value)
    cached = tmp_path / "scan-pipeline" / "weights" / "mine.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert find_weights() == cached
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    assert find_weights() == small_weights
    assert find_weights(str(cached)) == cached
    with pytest.raises(DetectorError, match=r"--weights nowhere\.bin: no such file, nor a hub name"):
        find_weights("nowhere.bin")


@pytest.mark.parametrize("listens", [False, True])
def test_a_dead_proxy_costs_seconds(listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses, and one that accepts a connection and never answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    monkeypatch.setattr("detector.hub.ANSWER_TIMEOUT", 0.5)
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if listens:
            dead.listen()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead.getsockname()[1]}")
        close_session()  # it has read the environment
        started = time.monotonic()
        with pytest.raises(DetectorError, match=r"nobody/nothing: could not be fetched .*the hub does not answer"):
            find_weights("nobody/nothing")
    assert time.monotonic() - started < 15
    close_session()


def test_places_are_those_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = tmp_path / "scan-pipeline/weights/mine.safetensors"
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub, file, **_: asked.append((hub, file)))
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    assert [path for _, path in locate.places()] == [None, None, None]
    assert asked == [(locate.DEFAULT_HUB, file) for file in locate.HUB_FILES]
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert [path for _, path in locate.places()] == [None, cached, None]
    assert locate.find_weights() == cached
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(tmp_path / "x.pth"))
    assert next(locate.places()) == ("$SCAN_PIPELINE_WEIGHTS", tmp_path / "x.pth")
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", "owner/name/file.bin")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub, file, **_: f"/hub/{hub}/{file}")
    assert [path for _, path in locate.places()] == [None, cached, Path("/hub/owner/name/file.bin")]
