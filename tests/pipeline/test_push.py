"""A detector, a store and a run are published, and fetched by name in another folder: from a hub, from mirrors, offline."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from click.testing import Result
from starlette.testclient import TestClient

from configs.files import file_sha256
from detector.errors import DetectorError
from detector.hub import HubName, fetch_file, fetch_folder, hub_name
from detector.locate import find_weights
from matcher.vocabulary import SPECIAL
from pipeline import push
from pipeline.errors import PipelineError
from pipeline.inputs.finding import find_captions
from pipeline.runs import load_run
from pipeline.store.reader import open_store
from tests.hub import TOKEN, Hub, hub
from tests.matcher.test_original import Evil
from tests.matcher.test_original import write as write_scan
from tests.matcher.test_original_methods import E, vse_image, vse_text
from tests.matcher.test_original_methods import write as write_vse
from tests.photos import write_photos
from tests.pipeline.service.servers import make_server
from tests.served import Ranges, http_server
from tests.stores import make_store
from tests.world import PHOTO, SMALL_TRAINING, lay_out_coco, scan


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with hub() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)  # what HF_ENDPOINT sets at import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield running


def ok(*arguments: str) -> Result:
    said = scan(*arguments)
    assert said.exit_code == 0, said.output
    return said


def forget_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Another user on another machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
    (tmp_path / name / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name / "work")


def test_a_run_is_fetched_with_its_detector_and_answers(
    server: Hub, tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    lay_out_coco(Path())
    ok("push", str(small_weights), "me/detector", "--license", "mit")
    images = ["extract", "--images", "coco/train2014", "--num-regions", "4", "--device", "cpu", "--workers", "0"]
    ok(*images, "--weights", "me/detector")
    commit = server.repositories["models/me/detector"][-1][0]
    manifest = json.loads(Path("features/train2014/manifest.json").read_text())
    assert manifest["weights"] == f"me/detector@{commit}/model.safetensors"
    Path("features/train2014/captions.tsv").write_text(
        "".join(f"COCO_train2014_{n:012}.jpg\ta dog {n}\n" for n in range(20))
    )
    ok("push", "features/train2014", "me/features", "--private")
    shutil.rmtree("features")
    run_here = str(tmp_path / "mine/runs/one")
    ok("train", *SMALL_TRAINING, "--features", "me/features", "--run", run_here)
    ok("evaluate", "--run", run_here, "--split", "all")
    ok("evaluate", "--run", run_here, "--run", run_here)
    said = ok("push", "runs/one", "me/run", "--license", "cc-by-4.0")
    revision = server.repositories["models/me/run"][-1][0]
    assert f"retrieve --query 'two dogs play in the snow' --run me/run@{revision}\n" in said.stdout

    published = [name for commits in server.repositories.values() for _, files in commits for name in files]
    texts = [content for commits in server.repositories.values() for _, files in commits for content in files.values()]
    assert not any(str(tmp_path).encode() in content for content in texts)  # folders of this machine stay here
    assert not any(name.startswith("last/") for name in published)
    card = server.repositories["models/me/run"][-1][1]["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert '"rsum"' in card

    forget_everything(tmp_path, monkeypatch, "theirs")
    write_photos(Path("new"), 3)
    features = f"me/features@{server.repositories['datasets/me/features'][-1][0]}"
    said = ok("retrieve", "--query", "a dog", "--run", f"me/run@{revision}", "--features", features, "--json")
    assert len(json.loads(said.stdout)[0]["hits"]) == 10
    captions = "captions.tsv"
    Path(captions).write_text("new/000.jpg\ta dog\n")
    ok("retrieve", "--image", "new/000.jpg", "--run", "me/run", "--features", "me/features", "--captions", captions)
    run = load_run(fetch_folder(hub_name("me/run"), "--run", kind="model"), torch.device("cpu"))  # type: ignore[arg-type]
    assert run.stores()[0].name == features.split("@")[1]  # fetched, as it was trained on it

    assert "rsum" in ok("evaluate", "--run", "me/run", "--features", "me/features").stdout
    assert Path("evaluation", f"me/run@{revision}", "dev.json").is_file()  # not in the hub's cache

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(server.asked)
    ok("retrieve", "--query", "a dog", "--run", "me/run", "--features", "me/features")
    assert len(server.asked) == before
    monkeypatch.delenv("HF_HUB_OFFLINE")

    monkeypatch.setenv("HF_TOKEN", "hf_other")  # not theirs
    forget_everything(tmp_path, monkeypatch, "others")
    said = scan("retrieve", "--query", "a dog", "--run", "me/run", "--features", "me/features")
    assert said.exit_code == 2
    assert "--features me/features: could not be fetched from the hub" in said.stderr
    said = scan("push", str(small_weights), "me/more")
    assert said.exit_code == 2
    assert "could not be published" in said.stderr
    assert "log in with: hf auth login" in said.stderr


def test_a_run_whose_store_was_published_apart(
    server: Hub, tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recalls and captions come from the store that is named, which is known by its content."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    lay_out_coco(Path())
    ok("push", str(small_weights), "me/detector")
    images = ["extract", "--images", "coco/train2014", "--num-regions", "4", "--device", "cpu", "--workers", "0"]
    ok(*images, "--weights", "me/detector")
    store = Path("features/train2014")
    store.joinpath("captions.tsv").write_text("".join(f"COCO_train2014_{n:012}.jpg\ta dog {n}\n" for n in range(20)))
    ok("train", *SMALL_TRAINING, "--run", "runs/one")
    ok("evaluate", "--run", "runs/one")
    said = ok("push", "runs/one", "me/run")
    assert "note: the run learned from train2014, which is not published with it: push it as well" in said.stdout
    ok("push", str(store), "me/features")
    ok("push", "runs/one", "me/run", "--mirror", str(tmp_path / "public"))
    before = json.loads(Path("runs/one/evaluation/dev.json").read_text())

    forget_everything(tmp_path, monkeypatch, "theirs")
    write_photos(Path("new"), 1)
    commit = server.repositories["models/me/run"][-1][0]
    ok("evaluate", "--run", "me/run", "--features", "me/features")
    assert json.loads(Path(f"evaluation/me/run@{commit}/dev.json").read_text())["protocols"] == before["protocols"]
    said = ok("retrieve", "--image", "new/000.jpg", "--run", "me/run", "--features", "me/features")
    assert "a dog " in said.stdout
    client = TestClient(make_server(run="me/run", features=("me/features",)).app())
    answer = client.post("/v1/captions", content=Path("new/000.jpg").read_bytes()).json()
    assert answer["captions"][0]["text"].startswith("a dog ")
    said = ok("index", "--run", "me/run", "--features", "me/features")
    assert said.stdout.endswith(" --features me/features --run me/run\n")
    said = scan("retrieve", "--query", "a dog", "--run", "me/run")
    assert said.exit_code == 2
    assert f"me/run@{commit}: was trained on train2014, which was not published with it; name it" in said.stderr
    with http_server(tmp_path / "public") as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        ok("evaluate", "--run", "me/run", "--features", "me/features")
    assert json.loads(Path("evaluation/me/run/dev.json").read_text())["protocols"] == before["protocols"]


def test_folders_of_this_machine_are_not_published(own_world: Path) -> None:
    Path("private").mkdir()
    features, captions = Path("us@er/features").resolve(), Path("coco/annotations/captions_train2014.json").resolve()
    shutil.copytree("features/train2014", features / "train2014")
    settings = ("--features", str(features / "train2014"), "--captions", str(captions), *SMALL_TRAINING)
    ok("train", "--run", "runs/other", "--device", "cpu", *settings)
    ok("push", "runs/other", "me/other", "--mirror", "public")
    vectors, grades = (str(Path("private", name).resolve()) for name in ("glove.txt", "grades.csv"))
    for file, before in (("config.yaml", "word_vectors: ''"), ("data.json", '"word_vectors": ""')):
        path = Path("runs/t2i_mean", file)
        content = path.read_text()
        assert before in content
        path.write_text(content.replace(before, before[:-2] + f'"{vectors}"'))
    rows = (f"{PHOTO.format(number)},a dog by a tree,{number % 3}\n" for number in range(20))
    Path(grades).write_text("image,caption,grade\n" + "".join(rows))
    ok("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--judgements", grades)
    ok("push", "runs/t2i_mean", "me/run", "--mirror", "public")
    published = {path.name: path.read_text() for path in Path("public").rglob("*.*") if path.suffix != ".safetensors"}
    assert {name for name, text in published.items() if "glove.txt" in text} == {
        "README.md",
        "config.yaml",
        "data.json",
    }
    assert "grades.csv" in published["all.json"]
    assert not [name for name, text in published.items() if str(own_world) in text]


def test_recalls_of_the_model_before_are_not_published(own_world: Path) -> None:
    """A run is evaluated, trained on, and published: its recalls are those of a model that is gone."""
    shutil.rmtree("runs/t2i_mean/evaluation", ignore_errors=True)  # what other tests asked for
    ok("evaluate", "--run", "runs/t2i_mean")
    file = Path("runs/t2i_mean/evaluation/dev.json")
    recalls = json.loads(file.read_text())
    assert recalls["model_sha256"] == [load_run(file.parents[1], torch.device("cpu")).sha256]
    older = {key: value for key, value in recalls.items() if key != "model_sha256"}
    for number, content in enumerate([recalls, recalls | {"model_sha256": ["of another"]}, older]):
        file.write_text(json.dumps(content))
        said = ok("push", "runs/t2i_mean", "me/run", "--mirror", f"public{number}")
        published = Path(f"public{number}/me/run/evaluation/dev.json").exists()
        card = Path(f"public{number}/me/run/README.md").read_text()
        assert published == ("## Recalls" in card) == ('"images_trained_on": [' in card) == (number == 0)
        assert published != (
            f"note: not published: {file}, whose recalls are not known to be this model's" in said.output
        )


def test_mirrors_are_tried_in_order(
    server: Hub,
    tmp_path: Path,
    small_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "public").mkdir()
    ok("push", str(small_weights), "me/detector", "--mirror", str(tmp_path / "public"))
    write_photos(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    with http_server(tmp_path / "public") as mirror, http_server(tmp_path / "photos") as other:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", f"http://127.0.0.1:9 {other.url} {mirror.url}/")
        found = fetch_file(hub_name("me/detector"), ["model.safetensors"], "--weights", "")  # type: ignore[arg-type]
        assert found.read_bytes() == small_weights.read_bytes()
        ok("extract", "--images", "photos", "--weights", "me/detector", "--num-regions", "4", "--device", "cpu")
        with pytest.raises(DetectorError, match=r"127.0.0.1:9: .*refused.*; http://.*404") as error:
            fetch_file(hub_name("me/none"), ["model.safetensors"], "--weights", "no way")  # type: ignore[arg-type]
        assert "no way" in str(error.value)
    monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
    caplog.clear()
    again = fetch_file(hub_name("me/detector"), ["model.safetensors"], "--weights", "")  # type: ignore[arg-type]
    assert again == found  # kept, though nobody answers any more
    (line,) = caplog.messages
    assert line.startswith("note: me/detector/model.safetensors: taking the copy that was fetched before")
    assert "refused" in line


def test_a_copy_is_taken_with_a_word_where_the_hub_does_not_answer(
    server: Hub, small_weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ok("push", str(small_weights), "me/detector")
    wanted = HubName("me/detector"), ["model.safetensors"], "--weights", ""
    found = fetch_file(*wanted)
    assert fetch_file(*wanted) == found
    assert not caplog.messages
    monkeypatch.setattr("detector.hub._unreachable", lambda _: "the hub does not answer: no route")
    for _ in range(2):
        assert fetch_file(*wanted) == found
    assert [line.rpartition("(")[2] for line in caplog.messages] == ["the hub does not answer: no route)"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_file(*wanted) == found
    assert len(caplog.messages) == 1


def test_what_a_mirror_replaced_is_fetched_again_and_leaves_nothing_of_before(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    public, ids = tmp_path / "public", [f"{number}.jpg" for number in range(6)]
    make_store(tmp_path / "large", ids, complete=True)
    make_store(tmp_path / "small", ids[:3], complete=True, seed=1)
    detector, features = hub_name("me/detector"), hub_name("me/features")
    assert detector
    assert features
    ok("push", str(small_weights), "me/detector", "--mirror", str(public))
    ok("push", "large", "me/features", "--mirror", str(public))
    with http_server(public) as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        monkeypatch.setattr("detector.hub._from_hub", lambda *_: pytest.fail("asks the hub"))
        found = fetch_file(detector, ["model.safetensors"], "--weights", "")
        other = small_weights.read_bytes()[::-1]  # as large
        (tmp_path / "other.safetensors").write_bytes(other)
        ok("push", "other.safetensors", "me/detector", "--mirror", str(public))
        os.utime(public / "me/detector/model.safetensors", (1e9, 1e9))
        assert fetch_file(detector, ["model.safetensors"], "--weights", "").read_bytes() == other
        assert len(open_store(fetch_folder(features, "--features", kind="dataset"))) == 6
        ok("push", "small", "me/features", "--mirror", str(public))
        folder = fetch_folder(features, "--features", kind="dataset")
        assert list(open_store(folder)) == ids[:3]
        (folder / "shard-00001.safetensors").unlink()
        assert fetch_folder(features, "--features", kind="dataset") == folder
        assert (folder / "shard-00001.safetensors").is_file()
    assert found.read_bytes() == other


def test_what_is_not_what_was_published_is_refused(server: Hub, tmp_path: Path, small_weights: Path) -> None:
    ok("push", str(small_weights), "me/detector")
    _, files = server.repositories["models/me/detector"][-1]
    for sums, message in {
        b"0" * 64 + b"  model.safetensors\n": "is not what was published",
        b"0" * 64 + b"  ../../evil.json\n": "SHA256SUMS lists",
        b"0" * 64 + b"  code.py\n": "SHA256SUMS lists",
    }.items():
        server.repositories["models/me/detector"].append((f"{len(sums):040x}", {**files, "SHA256SUMS": sums}))
        with pytest.raises(DetectorError, match=message):
            fetch_folder(hub_name("me/detector"), "--run", kind="model")  # type: ignore[arg-type]
    assert not (tmp_path / "evil.json").exists()
    said = scan("push", str(tmp_path), "me/x")
    assert "expected a store, a run, or a detector's .safetensors" in said.stderr
    said = scan("push", str(small_weights), "not-a-name")
    assert "expected the name of a repository, OWNER/NAME" in said.stderr


def test_a_published_checkpoint_is_fetched_and_searches_new_photos(
    server: Hub, tmp_path: Path, small_weights: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states = [vse_image(64, E).state_dict(), vse_text(tiny_bert).state_dict()]
    grid = [{f"module.image_encoder.{name}": tensor for name, tensor in states[0].items()}, states[1]]
    words = {word: number for number, word in enumerate([*SPECIAL, "a", "dog", "cat", "tree"])}
    files = {
        "f30k_region/model_best.pth": write_vse(Path("m.pth"), states, data_name="f30k").read_bytes(),
        "f30k_grid/model_best.pth": write_vse(Path("m.pth"), grid, data_name="f30k").read_bytes(),
        "evil.pth": write_vse(Path("m.pth"), states, more=Evil()).read_bytes(),
        "scan/model_best.pth.tar": write_scan(Path("m.pth")).read_bytes(),
        "scan/vocab.json": json.dumps({"word2idx": words, "idx2word": {}, "idx": 8}).encode(),
    }
    commit = "1" * 40
    server.repositories["models/me/vse"] = [(commit, files)]
    ok("import-checkpoint", "me/vse/f30k_region/model_best.pth", "--vocabulary", tiny_bert, "--output", "runs/vse")
    assert (
        json.loads(Path("runs/vse/data.json").read_text())["imported"] == f"me/vse@{commit}/f30k_region/model_best.pth"
    )
    write_photos(Path("photos"), 3)
    ok("extract", "--images", "photos", "--weights", str(small_weights), "--num-regions", "4", "--device", "cpu")
    said = ok("retrieve", "--query", "a dog", "--run", "runs/vse", "--features", "features/photos", "--json")
    assert len(json.loads(said.stdout)[0]["hits"]) == 3

    server.repositories["models/me/vse"].append(("2" * 40, {}))  # published since, without them
    before = f"me/vse@{commit}"
    ok("import-checkpoint", f"{before}/scan/model_best.pth.tar", "--vocabulary", f"{before}/scan/vocab.json")
    for name, message in {
        "me/vse/f30k_region/model_best.pth": "SOURCE me/vse: could not be fetched from the hub",
        "me/model_best.pth": "no such file",
        f"{before}/f30k_grid/model_best.pth": "a grid model of VSE∞",
        f"{before}/evil.pth": "refused: it holds more than tensors and options",
    }.items():
        refused = scan("import-checkpoint", name, "--vocabulary", tiny_bert, "--output", "runs/other")
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output
        assert "code was run" not in refused.output

    Path("public/me/vse").mkdir(parents=True)
    Path("public/me/vse/model_best.pth").write_bytes(files["f30k_region/model_best.pth"])
    with http_server(tmp_path / "public") as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        ok("import-checkpoint", "me/vse/model_best.pth", "--vocabulary", tiny_bert, "--output", "runs/mirrored")
    assert json.loads(Path("runs/mirrored/data.json").read_text())["imported"] == "me/vse/model_best.pth"


def test_a_checkpoint_of_others_is_a_run_by_its_name(
    server: Hub, tmp_path: Path, small_weights: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.runs.BERT", tiny_bert)
    states = [vse_image(64, E).state_dict(), vse_text(tiny_bert).state_dict()]
    checkpoint = write_vse(Path("m.pth"), states, data_name="f30k").read_bytes()
    files = {"region/model_best.pth": checkpoint, "scan/model_best.pth.tar": write_scan(Path("m.pth")).read_bytes()}
    server.repositories["models/me/vse"] = [("1" * 40, files)]
    lay_out_coco(Path())
    ok("extract", "--images", "coco/train2014", "--weights", str(small_weights), "--num-regions", "4", "--workers", "0")
    captions = ["--captions", "coco/annotations/captions_train2014.json"]
    run, exact = "hub:me/vse/region", f"me/vse@{'1' * 40}/region"
    Path("me/vse").mkdir(parents=True)  # a folder that looks as if it were meant
    assert f"run: {exact}; searching 20 photos" in ok("retrieve", "--query", "a dog", "--run", run).output
    image = "COCO_train2014_000000000003.jpg"
    ok("explain", "--image", image, "--caption", "a dog", "--run", run)
    ok("index", "--run", run)
    ok("evaluate", "--run", run, "--split", "all", "--features", "features/train2014", *captions)
    assert Path("evaluation", exact, "train2014_captions_train2014_all.json").is_file()  # not in the cache
    client = TestClient(make_server(run=run, features=("features/train2014",)).app())
    assert len(client.post("/v1/search", json={"queries": ["a dog"]}).json()["answers"][0]["hits"]) == 10

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(server.asked)
    ok("retrieve", "--query", "a dog", "--run", run)
    assert len(server.asked) == before
    assert len(list((tmp_path / "cache/scan-pipeline/imported").iterdir())) == 1
    for name, message in {
        "hub:me/vse/none": "--run me/vse: could not be fetched from the hub (offline mode",
        "hub:me/other": "--run me/other: could not be fetched from the hub (offline mode",
        "hub:other": "--run hub:other: expected hub:OWNER/NAME[@REVISION][/FOLDER]",
    }.items():
        said = scan("retrieve", "--query", "a dog", "--run", name)
        assert (said.exit_code, said.stderr.count("\n"), message in said.stderr) == (2, 1, True), said.output
    monkeypatch.delenv("HF_HUB_OFFLINE")
    said = scan("retrieve", "--query", "a dog", "--run", "hub:me/vse/scan")
    assert "expected a vocabulary file (.json); scan-pipeline import-checkpoint takes" in said.stderr

    Path("public/me/vse/region").mkdir(parents=True)
    Path("public/me/vse/region/model_best.pth").write_bytes(checkpoint)
    del server.repositories["models/me/vse"]
    forget_everything(tmp_path, monkeypatch, "theirs")
    with http_server(tmp_path / "public") as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        stored = ["--features", str(tmp_path / "features/train2014")]
        assert "run: me/vse/region;" in ok("retrieve", "--query", "a dog", "--run", run, *stored).output


def test_a_file_that_cannot_be_read_is_refused_and_not_published_without_its_checksum(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="gone: cannot be read"):
        push._sha256(tmp_path / "gone")


def test_what_is_published_can_be_fetched_and_no_option_is_ignored(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(Path("features/mine"), ["a.jpg", "b.jpg"])
    for name in ("captions.csv", "captions.bak", "captions of mine.tsv"):
        Path("features/mine", name).write_text("a.jpg,A dog\nb.jpg,A tree\n")
    said = ok("push", "features/mine", "me/mine", "--mirror", "public")
    assert "no file of such a name is fetched: captions of mine.tsv, captions.bak" in said.stdout
    with http_server(tmp_path / "public") as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        fetched = fetch_folder(HubName("me/mine"), "--features", kind="dataset")
        assert [path.name for path in find_captions(open_store(fetched))] == ["captions.csv"]
    for options, reason in (
        (("--mirror", "public", "--private"), "--private: of a repository on the hub"),
        (("--mirror", "public", "--detector", "me/detector"), "--detector: of a run, and features/mine is none"),
    ):
        refused = scan("push", "features/mine", "me/other", *options)
        assert refused.exit_code == 2
        assert reason in refused.stderr
    assert not Path("public/me/other").exists()


def test_a_fetched_store_is_whole_and_a_damaged_run_is_not_published(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ok("push", "features/train2014", "me/features", "--mirror", str(tmp_path / "public"))
    store = tmp_path / "public/me/features"  # as a mirror gives it: without a plan
    assert ": 20 images in 1 shards, " in ok("inspect", str(store)).stdout
    (store / "shard-00000.safetensors").write_bytes(b"")
    repaired = scan("inspect", str(store), "--repair")
    assert repaired.exit_code == 1
    assert "next: ask for it by its name, which fetches what is missing" in repaired.stdout
    shutil.copytree("runs/t2i_mean", tmp_path / "run")
    model = bytearray((tmp_path / "run/best.safetensors").read_bytes())
    model[-5] ^= 1
    (tmp_path / "run/best.safetensors").write_bytes(model)
    said = scan("push", str(tmp_path / "run"), "me/run", "--mirror", str(tmp_path / "public"))
    assert (said.exit_code, "damaged, its bytes are not those that were written" in said.stderr) == (2, True)
    assert not (tmp_path / "public/me/run").exists()


def test_weights_that_a_mirror_damaged_are_refused_and_new_ones_taken(
    server: Hub, tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, name = tmp_path / "public", HubName("me/detector")
    ok("push", str(small_weights), "me/detector", "--mirror", str(public))
    weights = public / "me/detector/model.safetensors"
    content = weights.read_bytes()
    with http_server(public) as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        weights.write_bytes(content[:-5] + b"\0" + content[-4:])
        for _ in range(2):
            with pytest.raises(
                DetectorError, match=r"model.safetensors is not what was published \(its sha256 differs\)"
            ):
                find_weights("me/detector")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(DetectorError, match="offline mode"):  # what was refused is not kept
            find_weights("me/detector")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        weights.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(Ranges, "do_GET", _without_sums)
            with pytest.raises(DetectorError, match="503"):
                find_weights("me/detector")
        assert find_weights("me/detector").read_bytes() == content
        monkeypatch.setattr(
            BaseHTTPRequestHandler, "send_header", _without_dates
        )  # nothing tells that a file is another one
        other = tmp_path / "other.safetensors"
        other.write_bytes(content[::-1])
        ok("push", str(other), "me/detector", "--mirror", str(public))
        assert find_weights("me/detector").read_bytes() == content[::-1]
        (public / "me/detector/SHA256SUMS").unlink()  # as of those who publish without scan-pipeline
        weights.write_bytes(content)
        assert fetch_file(name, ["model.safetensors"], "--weights", "").read_bytes() == content


def _without_sums(handler: Ranges) -> None:
    """It sends files, and not their checksums."""
    if handler.path.endswith("SHA256SUMS"):
        handler.send_error(503)
    else:
        SimpleHTTPRequestHandler.do_GET(handler)


def _without_dates(handler: BaseHTTPRequestHandler, name: str, value: str) -> None:
    if name not in ("Last-Modified", "ETag"):
        handler._headers_buffer.append(f"{name}: {value}\r\n".encode())  # type: ignore[attr-defined]


def test_a_file_that_was_damaged_in_the_cache_of_the_hub_is_refused(server: Hub, small_weights: Path) -> None:
    ok("push", str(small_weights), "me/detector")
    found = find_weights("me/detector")
    if (stored := found.resolve()).name == file_sha256(found):  # as the hub keeps large files
        stored.write_bytes(found.read_bytes()[::-1])
        with pytest.raises(DetectorError, match="damaged, its sha256 is not the hub's; delete"):
            find_weights("me/detector")


def test_a_repository_that_became_again_what_it_was_is_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_store(tmp_path / f"store{seed}", ["a.jpg"], complete=True, seed=seed)
    with http_server(tmp_path / "public") as mirror:
        monkeypatch.setenv("SCAN_PIPELINE_MIRROR", mirror.url)
        for seed in (0, 1, 0):
            ok("push", f"store{seed}", "me/features", "--mirror", "public")
            folder = fetch_folder(HubName("me/features"), "--features", kind="dataset")
            assert open_store(folder).content_sha256 == open_store(f"store{seed}").content_sha256


@pytest.mark.parametrize("answer", [b"no HTTP\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf"])
def test_a_mirror_that_speaks_no_http_is_passed_over(
    server: Hub, small_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes
) -> None:
    ok("push", str(small_weights), "me/detector")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            while True:
                client, _ = listener.accept()
                client.recv(1000)
                client.sendall(answer)
                client.close()

        threading.Thread(target=speak, daemon=True).start()
        monkeypatch.setenv(
            "SCAN_PIPELINE_MIRROR", f"http://127.0.0.1:{listener.getsockname()[1]} http://a:80b http://[::1 http://a..b"
        )
        assert find_weights("me/detector").read_bytes() == small_weights.read_bytes()
    assert not list((tmp_path / "cache").rglob("*.tmp"))
