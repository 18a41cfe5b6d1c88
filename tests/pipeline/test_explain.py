"""Pictures and pages show what the similarity is made of, and hold all that they need."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from matcher.attention import attend
from matcher.checkpoint import load_model
from matcher.metrics_log import METRICS, read_metrics
from pipeline.explain import ExplainConfig, run
from pipeline.fields import FIGURE, PAGE, PICTURE, SIGNATURE
from pipeline.pages.plots import training_curves
from pipeline.store.reader import open_store
from tests.photos import write_photos
from tests.world import scan

IMAGE = "COCO_train2014_000000000003.jpg"
CAPTION = 'a dog by a </script> "tree"'


class Links(HTMLParser):
    """Everything in a page that could ask for something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.without_alt = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.sources += [value for name, value in attributes if name in ("src", "href") and value]
        self.without_alt += tag == "img" and not values.get("alt")


def assert_self_contained(page: str) -> None:
    links = Links(page)
    assert all(source.startswith("data:") for source in links.sources)
    assert links.without_alt == 0
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_letters_that_the_font_lacks_are_no_warning(inside: Path, recwarn: pytest.WarningsRecorder) -> None:
    said = scan(
        "explain", "--image", IMAGE, "--caption", "a dog \U0001f436", "--run", "runs/t2i_mean", "--output", "e.svg"
    )
    assert said.exit_code == 0, said.output
    assert not [str(one.message) for one in recwarn if "Glyph" in str(one.message)]


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_attention_is_the_matchers(inside: Path, direction: str) -> None:
    found = run(ExplainConfig(image=IMAGE, caption=CAPTION, run="runs/t2i_mean", output="e.png", attention=direction))
    model = load_model("runs/t2i_mean/best.safetensors")
    regions = open_store("features/train2014")[IMAGE]
    with torch.inference_mode():
        embeddings = model.encode_images(torch.from_numpy(regions.features).float()[None])[0]
        words = model.encode_captions([CAPTION])[0][0]
        wanted = attend(
            (words @ embeddings.T)[None, :, None],
            attention=direction,  # type: ignore[arg-type]
            normalization="clipped_l2norm",
            softmax_temperature=9.0,
        )[0, :, 0]
    assert found.words == ["a", "dog", "by", "a", "/script", "tree"]  # neither marks nor punctuation
    tokens = model.vocabulary.word_positions(CAPTION)
    np.testing.assert_allclose(
        found.attention, wanted[[at for word, (at,) in tokens if any(map(str.isalnum, word))]], atol=1e-5
    )
    np.testing.assert_array_equal(found.boxes, regions.boxes)
    if direction == "t2i":
        assert found.score == pytest.approx(float(found.word_scores.sum()) + found.rest, abs=1e-5)  # Mean pooling
    assert cv2.imread("e.png").shape[1] > 600


def test_the_page_holds_what_it_shows(inside: Path) -> None:
    said = scan("explain", "--image", IMAGE, "--caption", CAPTION, "--run", "runs/t2i_mean", "--output", "e.html")
    assert said.exit_code == 0, said.output
    page = Path("e.html").read_text()
    assert_self_contained(page)
    assert "a dog by a &lt;/script&gt;" in page
    content = json.loads(re.search(r"const data = (.*);", page)[1])  # type: ignore[index]
    assert content["words"][:2] == ["a", "dog"]
    assert np.array(content["attention"]).shape == (len(content["words"]), 6)
    np.testing.assert_allclose(np.sum(content["attention"], axis=1), 1, atol=1e-3)
    assert page.count("</script>") == 1
    assert re.search(r"^ +\d+%  dog +attribute \d object \d+$", said.stdout, re.MULTILINE)
    asked = ["explain", "--run", "runs/t2i_mean", "--image", IMAGE, "--caption", "a dog asdfgh", "--output", "e.html"]
    assert "by run runs/t2i_mean, to which 'asdfgh' is unknown; " in scan(*asked).stdout
    assert "by run runs/t2i_mean, to which &#39;asdfgh&#39; is unknown" in Path("e.html").read_text()


def test_a_photo_of_no_store_is_extracted(inside: Path) -> None:
    write_photos(inside / "stranger", 4, names="new{}.jpg")
    said = scan(
        "explain", "--image", "stranger/new3.jpg", "--caption", "a dog", "--run", "runs/t2i_mean", "--device", "cpu"
    )
    assert said.exit_code == 0, said.output
    assert "is in no store: extracting its regions" in said.stderr
    assert Path("explanation.png").is_file()


def test_answers_as_a_page(inside: Path) -> None:
    Path("queries.txt").write_text("a <b>tree</b>\n\n a boat \n")
    asked = ["--run", "runs/t2i_mean", "--query", "a dog", "--queries", "queries.txt", "--image", IMAGE, "--top", "40"]
    said = scan("retrieve", *asked, "--html", "page/answers.html")
    assert said.exit_code == 0, said.output
    page = Path("page/answers.html").read_text()
    assert_self_contained(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["a dog", "a &lt;b&gt;tree&lt;/b&gt;", "a boat", IMAGE]
    assert page.count("data:image/jpeg") == 3 * 20 + 1
    assert "Boxes: regions that did most" in page
    assert "starter" not in page
    assert page.count('<li class="right">✓') == 2  # its own two captions
    assert page.count("✓") == 3


def test_an_evaluation_as_a_page(inside: Path) -> None:
    said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--html", "evaluation.html")
    assert said.exit_code == 0, said.output
    page = Path("evaluation.html").read_text()
    assert_self_contained(page)
    rsum = json.loads(Path("runs/t2i_mean/evaluation/all.json").read_text())["protocols"]["20 images"]["rsum"]
    assert f"<td>{rsum:.1f}</td>" in page
    assert page.count("<svg") == 4  # ranks and curves
    ranks = [int(rank) for rank in re.findall(r"its photo came at rank (\d+)", page)]
    assert ranks == sorted(ranks, reverse=True)
    assert page.count('class="own"') == len(ranks) == 12
    own = re.findall(r'alt="right: ([^"]+)"', page)
    assert len(own) == len(set(own)) == 12  # no photo twice among the worst
    assert "changed since" not in page


def test_an_evaluations_page_marks_photos_that_changed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    page, photos = Path("evaluation.html"), sorted(Path("coco/train2014").iterdir())
    asked = ["evaluate", "--run", "runs/t2i_mean", "--split", "all", "--html", str(page)]
    assert scan(*asked).exit_code == 0
    (shown, *_) = re.findall(r'alt="right: ([^"]+)"', page.read_text())
    shutil.copy(next(path for path in photos if path.name != shown), f"coco/train2014/{shown}")
    assert scan(*asked).exit_code == 0
    captions = set(re.findall(r"<figcaption>[^<]*? · (.*?)</figcaption>", page.read_text()))
    assert f"{shown} · changed since it was extracted" in captions
    assert [name for name in captions if "changed" in name] == [f"{shown} · changed since it was extracted"]


def test_training_curves(inside: Path, tmp_path: Path) -> None:
    assert scan("plot", "--run", "runs/t2i_mean", "--run", "runs/t2i_mean").exit_code == 0
    assert cv2.imread("curves.png").shape[:2] == (540, 1500)
    other = shutil.copytree("runs/t2i_mean", tmp_path / "t2i_mean")
    first, second = training_curves([Path("runs/t2i_mean"), other]).axes[1].get_legend().get_texts()
    assert [first.get_text(), second.get_text()] == ["runs/t2i_mean", f"{tmp_path}/t2i_mean"]  # two of one name
    loss, warmup = training_curves([other]).axes[0].lines
    logged = [row for row in read_metrics(other / METRICS) if row["split"] == "train"]
    assert loss.get_xydata().tolist() == [[row["step"], row["loss"]] for row in logged]  # which is per caption
    assert set(warmup.get_xdata()) == {max(row["step"] for row in logged if row["epoch"] == 0)}
    config = (other / "config.yaml").read_text()
    for before, after in (("loss: hinge", "loss: infonce"), ("hardest_negatives: true", "hardest_negatives: false")):
        assert before in config
        (other / "config.yaml").write_text(config.replace(before, after))
        assert len(training_curves([other]).axes[0].lines) == 1  # which have no warm-up
    (other / "config.yaml").write_text(config)
    formula = shutil.copytree("runs/t2i_mean", tmp_path / r"a $\frac$")  # none that matplotlib can draw
    assert scan("plot", "--run", "runs/t2i_mean", "--run", str(formula)).exit_code == 0
    said = scan("plot", "--run", "runs/t2i_mean", "--output", "curves.txt")
    assert said.exit_code == 2
    assert "--output curves.txt: expected a name that ends in .png, .jpg, .jpeg, .pdf, .svg" in said.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["explain", "--image", IMAGE, "--caption", "a", "--output", "x.txt"], "expected a name that ends in .png"),
        (["explain", "--image", "nowhere.jpg", "--caption", "a"], "neither an image of the stores searched nor a file"),
        (["explain", "--image", IMAGE, "--caption", ""], "nothing to explain"),
        (["retrieve", "--queries", "nowhere.txt"], "nowhere.txt: not readable as a text file"),
    ],
)
def test_mistakes_are_one_line(inside: Path, command: list[str], message: str) -> None:
    said = scan(*command, "--run", "runs/t2i_mean")
    assert said.exit_code == 2
    assert message in said.stderr


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["explain", "--image", IMAGE, "--caption", CAPTION, "--output"], FIGURE + PAGE + (".PNG", ".HTM")),
        (["plot", "--output"], FIGURE),
        (["retrieve", "--query", CAPTION, "--top", "1", "--picture"], PICTURE),
        (["retrieve", "--query", CAPTION, "--top", "1", "--html"], PAGE),
        (["evaluate", "--split", "all", "--html"], PAGE[:1]),
    ],
)
def test_only_what_a_command_wrote_is_replaced(
    command: list[str], names: tuple[str, ...], inside: Path, tmp_path: Path
) -> None:
    for suffix in names:
        path = tmp_path / f"a{suffix}"
        command_line = [*command, str(path), "--run", "runs/t2i_mean"]
        assert scan(*command_line).exit_code == 0
        first = path.read_bytes()
        assert scan(*command_line).exit_code == 0  # its own
        path.write_bytes(first.replace(SIGNATURE.encode(), b"drawn by hand"))
        said = scan(*command_line)
        assert said.exit_code == 2
        expected = f"{command[-1]} {path}: is there already, and was not written by scan-pipeline; choose another name"
        assert said.stderr == f"error: {expected}\n"  # before the work
        assert b"drawn by hand" in path.read_bytes()


def test_no_photo_is_overwritten(inside: Path, tmp_path: Path) -> None:
    photo = Path(shutil.copy(next(Path("coco/train2014").iterdir()), tmp_path / "1.jpg"))
    content = photo.read_bytes()
    (tmp_path / "link.jpg").symlink_to(photo)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("1.jpg", "link.jpg", "folder.jpg"):
        for command in (["retrieve", "--query", "a dog", "--picture"], ["plot", "--output"]):
            said = scan(*command, str(tmp_path / name))
            assert said.exit_code == 2
            assert "is there already, and was not written by scan-pipeline" in said.stderr
    assert photo.read_bytes() == content
