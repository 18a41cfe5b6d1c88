"""The app: what it answers, what it refuses, and what a browser shows of it and of the pages."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.errors import PipelineError
from pipeline.pages import library
from pipeline.pages.app import AppConfig, Search, _without_folders, listen, make_app
from tests.world import scan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
IMAGE = "COCO_train2014_000000000003.jpg"


@pytest.fixture(scope="module")
def search(world: Path, small_weights: Path) -> Iterator[Search]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        yield Search(AppConfig(run="runs/t2i_mean", weights=str(small_weights), device="cpu"), say=lambda _: None)


@pytest.fixture
def client(search: Search, inside: Path) -> TestClient:
    return TestClient(make_app(search))


def images(answer: dict[str, Any]) -> list[str]:
    return [hit["name"] for hit in answer["hits"]]


def test_search_answers_as_retrieve_does(client: TestClient, inside: Path) -> None:
    answer = client.get("/photos", params={"q": "a dog by a tree", "top": "5"}).json()
    said = scan("retrieve", "--run", "runs/t2i_mean", "--query", "a dog by a tree", "--top", "5")
    lines = [line.removesuffix("  (weak)") for line in said.stdout.splitlines()]
    found = [line.split("/")[-1] for line in lines if line.endswith(".jpg")]
    assert images(answer) == found
    assert answer["searched"] == 20
    rest = client.get("/photos", params={"q": "a dog by a tree", "top": "15", "offset": "5"}).json()
    assert [hit["rank"] for hit in rest["hits"]] == list(range(6, 21))
    assert len({*images(answer), *images(rest)}) == 20


def test_paths_stay_on_this_machine(client: TestClient, search: Search, inside: Path) -> None:
    assert str(inside) in client.get("/photos", params={"q": "dog"}).text  # the browser is on this machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "config", AppConfig(host="0.0.0.0"))
        assert str(inside) not in client.get("/photos", params={"q": "dog"}).text
        assert str(inside) not in client.get("/library").text


def test_the_library_is_listed_newest_first(client: TestClient, inside: Path) -> None:
    photos = sorted((inside / "coco/train2014").glob("*.jpg"))
    for index, path in enumerate(photos):
        os.utime(path, (1_600_000_000 + 86400 * index,) * 2)
    search = Search(AppConfig(run="runs/t2i_mean", device="cpu"), say=lambda _: None)
    client = TestClient(make_app(search))
    first, rest = (client.get("/library", params={"top": "12", "offset": str(o)}).json() for o in (0, 12))
    assert images(first) + images(rest) == [path.name for path in reversed(photos)]
    day = first["hits"][3]["date"]
    assert images(client.get("/library", params={"since": day, "until": day}).json()) == [photos[-4].name]
    assert client.get("/photos", params={"q": "dog", "since": day}).json()["searched"] == 4
    assert client.get("/library", params={"store": "features/train2014"}).json()["searched"] == 20
    assert client.get("/library", params={"store": "features/other"}).json()["searched"] == 0
    assert client.get("/library", params={"folder": "none"}).json()["searched"] == 0
    assert client.get("/library", params={"since": "yesterday"}).status_code == 400


def test_weak_matches_are_marked(client: TestClient, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [hit["score"] for hit in client.get("/photos", params={"q": "a dog"}).json()["hits"]]
    middle = (scores[2] + scores[3]) / 2
    monkeypatch.setattr(search, "calibration", SimpleNamespace(is_weak=lambda score: score < middle))
    hits = client.get("/photos", params={"q": "a dog"}).json()["hits"]
    assert [hit["weak"] for hit in hits] == [score < middle for score in scores]
    assert 0 < sum(hit["weak"] for hit in hits) < len(hits)


def test_photos_like_a_photo(client: TestClient, search: Search) -> None:
    key = search.library.keys[3]
    alike = client.get("/photos", params={"like": key, "top": "20"}).json()
    assert len(alike["hits"]) == alike["searched"] == 19  # itself apart
    assert key not in [hit["key"] for hit in alike["hits"]]
    both = client.get("/photos", params={"like": key, "q": "a boat", "top": "20"}).json()
    assert sorted(images(both)) == sorted(images(alike))
    assert client.get("/photos", params={"like": "none"}).status_code == 400


def test_photos_and_attention(client: TestClient, search: Search) -> None:
    key = search.library.keys[search.collection.row(IMAGE)]
    response = client.get(f"/photo/{key}", params={"size": "32"})
    assert response.headers["content-type"] == "image/jpeg"
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) == 32
    data = client.get("/attention", params={"photo": key, "q": "a dog"}).json()
    assert data["words"] == ["a", "dog"]  # no marks
    np.testing.assert_allclose(np.sum(data["attention"], axis=1), 1, atol=1e-3)
    assert data["image"] == IMAGE


def test_an_address_means_one_photo_and_changes_with_it(client: TestClient, search: Search) -> None:
    row = search.collection.row(IMAGE)
    address = f"/photo/{search.library.keys[row]}"
    first = client.get(address)
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    assert client.get(address, headers={"if-none-match": tag}).status_code == 304
    path = Path(search.library.place(row))
    os.utime(path, (1, 1))
    assert client.get(address, headers={"if-none-match": tag}).status_code == 200
    original = client.get(f"/original/{search.library.keys[row]}", params={"download": ""})
    assert original.content == path.read_bytes()
    assert IMAGE in original.headers["content-disposition"]


def test_a_photo_that_is_too_large_is_refused_before_it_is_decoded(
    client: TestClient, search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_900, 10_900)).save(path)
    monkeypatch.setattr(search.collection, "image_place", lambda row: str(path))
    refused = client.get(f"/photo/{search.library.keys[0]}")
    assert refused.status_code == 400
    assert refused.json()["error"].endswith("10900 x 10900 pixels: more than 50,000,000")
    assert str(tmp_path) not in refused.text
    for size in ((3000, 1), (1, 3000)):
        Image.new("RGB", size).save(path)
        assert client.get(f"/photo/{search.library.keys[0]}", params={"size": "64"}).status_code == 200


def test_thumbnails_are_kept_within_bounds(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CACHE", 3000)
    for row in range(20):
        search.library.thumbnail(row, 64)
    assert sum(map(len, search.library._thumbnails.values())) <= 3000


def test_captions_for_an_upload(client: TestClient, inside: Path) -> None:
    answer = client.post("/captions", content=(inside / "coco/train2014" / IMAGE).read_bytes()).json()
    scores = [caption["score"] for caption in answer["captions"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    refused = client.post("/captions", content=b"no photo")
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("not an image (")


def test_upload_is_offered_only_where_a_detector_serves_it(client: TestClient, search: Search) -> None:
    assert 'id="upload"' in client.get("/").text
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(search.__dict__, "takes_uploads", False)
        assert 'id="upload"' not in client.get("/").text
        assert client.post("/captions", content=b"x").status_code == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/photo/../../etc/passwd", 404),
        ("/photo/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("/photo/99999", 404),
        ("/photo/0/0", 400),
        ("/original/../../../etc/passwd", 404),
        ("/original/x/passwd", 400),
        ("/attention?photo=0", 400),
        ("/attention?photo=x&q=dog", 400),
        ("/photos?q=" + "a" * 501, 400),
        ("/photos?q=dog&top=many", 400),
        ("/photos?q=dog&offset=\u00b2", 400),
        ("/nothing", 404),
    ],
)
def test_only_what_is_meant_is_answered(client: TestClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert "root:" not in response.text


def test_messages_name_no_folders() -> None:
    assert _without_folders("/home/me/my.photos/a.jpg: damaged; see /tmp/x/run") == "a.jpg: damaged; see run"


def test_a_port_in_use_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said = scan("app", "--port", str(port))
    assert said.exit_code == 2
    assert f"--host 127.0.0.1 --port {port}: Address already in use" in said.stderr
    assert "Open http" not in said.output
    with pytest.raises(PipelineError, match="--port 99999: expected 0 to 65535"):
        listen("127.0.0.1", 99999)


def test_other_names_for_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_without_a_run_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = scan("app", "--port", "8999")
    assert said.exit_code == 2
    assert "no trained run found" in said.stderr
    with pytest.raises(PipelineError, match="no trained run found"):
        Search(AppConfig())


def test_two_people_at_once(client: TestClient) -> None:
    queries = ["a dog", "a tree", "a boat by a house", "a ball"]
    alone = [client.get("/photos", params={"q": query}).json() for query in queries]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda query: client.get("/photos", params={"q": query}).json(), queries))
            assert list(map(images, together)) == list(map(images, alone))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait_for(condition: Any, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_the_app_in_a_browser(browser: Any, search: Search, inside: Path) -> None:
    import uvicorn
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    server = uvicorn.Server(uvicorn.Config(make_app(search), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    find = lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
    browser.get(f"http://127.0.0.1:{port}/")
    wait_for(lambda: len(find("#gallery img")) == 20)  # the library, before any query
    query = browser.find_element(By.ID, "query")
    query.send_keys("a dog by a tree")
    wait_for(lambda: "ranked" in browser.find_element(By.ID, "status").text)
    assert "q=a+dog+by+a+tree" in browser.current_url
    photos = wait_for(lambda: find("#gallery button.photo"))
    assert len(photos) == 20
    photos[0].click()
    words = wait_for(lambda: find(".lightbox .words button"))
    assert [word.text for word in words] == ["a", "dog", "by", "a", "tree"]  # no start and end marks
    ActionChains(browser).move_to_element(words[4]).perform()
    assert "“tree” looks most" in browser.find_element(By.CSS_SELECTOR, ".note").text
    title = lambda: browser.find_element(By.CSS_SELECTOR, ".lightbox h2").text  # noqa: E731
    first = title()
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    wait_for(lambda: title().startswith("2 · "))
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    wait_for(lambda: title() == first)
    browser.find_element(By.XPATH, "//button[text()='Similar photos']").click()
    wait_for(lambda: find("#like img"))
    assert "like=" in browser.current_url
    browser.back()  # to the photo, which is open again
    wait_for(lambda: find("dialog[open]") and "q=a+dog+by+a+tree" in browser.current_url)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    wait_for(lambda: not find("dialog[open]"))
    wait_for(lambda: "photo=" not in browser.current_url)
    find(".pick")[2].click()
    assert browser.find_element(By.ID, "selection").text.startswith("1 selected")
    browser.find_element(By.ID, "upload").send_keys(str(inside / "coco/train2014" / IMAGE))
    wait_for(lambda: len(find("#captions li")) == 10)
    query.clear()
    query.send_keys("a boat")
    wait_for(lambda: not find("#captions li"))  # the old photo and its captions are gone
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    server.should_exit = True
    thread.join(10)


@pytest.mark.slow
def test_the_pages_in_a_browser(browser: Any, inside: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    scan("explain", "--image", IMAGE, "--caption", "a dog by a tree", "--run", "runs/t2i_mean", "--output", "b.html")
    browser.get((inside / "b.html").as_uri())
    words = browser.find_elements(By.CSS_SELECTOR, ".words button")
    dark = "return document.querySelector('canvas').getContext('2d').getImageData(0, 0, 192, 192).data.filter((v, i) => i % 4 === 3).reduce((a, b) => a + b, 0)"
    shades = []
    for word in words[1:3]:
        ActionChains(browser).move_to_element(word).perform()
        shades.append(browser.execute_script(dark))
        assert word.get_attribute("class") == "on"
    assert shades[0] > 0
    assert shades[0] != shades[1]  # another word, another part of the photo
    ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, ".stage rect")).perform()
    wait_for(lambda: "looks most (" in browser.find_element(By.CSS_SELECTOR, ".note").text)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_unknown_words_are_named(client: TestClient) -> None:
    assert client.get("/photos", params={"q": "a hous"}).json()["unknown"] == {"hous": "house"}
    refused = client.get("/photos", params={"q": "asdfgh qwerty"})
    assert refused.status_code == 400
    assert "knows none of these words" in refused.json()["error"]
