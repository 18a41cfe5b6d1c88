"""The app: what it answers, what it refuses, and what a browser shows of it and of the pages."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline.errors import PipelineError
from pipeline.pages.app import AppConfig, Search, make_app
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


def test_search_answers_as_retrieve_does(client: TestClient, inside: Path) -> None:
    answer = client.get("/photos", params={"q": "a dog by a tree", "top": "5"}).json()
    said = scan("retrieve", "--run", "runs/t2i_mean", "--query", "a dog by a tree", "--top", "5")
    assert [hit["image"] for hit in answer["hits"]] == [
        line.split("/")[-1] for line in said.stdout.splitlines() if line.endswith(".jpg")
    ]
    assert answer["searched"] == 20
    assert str(inside) not in client.get("/photos", params={"q": "dog"}).text  # no paths of this machine


def test_photos_and_attention(client: TestClient, search: Search) -> None:
    row = search.collection.row(IMAGE)
    response = client.get(f"/photo/{row}", params={"size": "32"})
    assert response.headers["content-type"] == "image/jpeg"
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) == 32
    data = client.get("/attention", params={"row": row, "q": "a dog"}).json()
    assert data["words"] == ["<start>", "a", "dog", "<end>"]
    np.testing.assert_allclose(np.sum(data["attention"], axis=1), 1, atol=1e-3)
    assert data["image"] == IMAGE


def test_captions_for_an_upload(client: TestClient, inside: Path) -> None:
    answer = client.post("/captions", content=(inside / "coco/train2014" / IMAGE).read_bytes()).json()
    scores = [caption["score"] for caption in answer["captions"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    refused = client.post("/captions", content=b"no photo")
    assert refused.status_code == 400
    assert refused.json() == {"error": "not an image (JPEG, PNG, BMP, WEBP)"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/photo/../../etc/passwd", 404),
        ("/photo/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("/photo/99999", 400),
        ("/photo/-1", 404),
        ("/attention?row=0", 400),
        ("/attention?row=x&q=dog", 400),
        ("/photos?q=" + "a" * 501, 400),
        ("/photos?q=dog&top=many", 400),
        ("/nothing", 404),
    ],
)
def test_only_what_is_meant_is_answered(client: TestClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert "root:" not in response.text


def test_other_names_for_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_without_a_run_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = scan("app")
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
            assert [[hit["image"] for hit in one["hits"]] for one in together] == [
                [hit["image"] for hit in one["hits"]] for one in alone
            ]


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
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    server = uvicorn.Server(uvicorn.Config(make_app(search), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    browser.get(f"http://127.0.0.1:{port}/")
    browser.find_element(By.ID, "query").send_keys("a dog by a tree")
    photos = wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "#gallery img"))
    assert len(photos) == 20
    wait_for(lambda: photos[0].get_property("naturalWidth") > 0)
    photos[0].click()
    words = wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "#detail .words button"))
    assert [word.text.splitlines()[0] for word in words] == ["<start>", "a", "dog", "by", "a", "tree", "<end>"]
    ActionChains(browser).move_to_element(words[5]).perform()
    assert "“tree” looks most" in browser.find_element(By.CSS_SELECTOR, ".note").text
    browser.find_element(By.ID, "upload").send_keys(str(inside / "coco/train2014" / IMAGE))
    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#detail li")) == 10)
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
    wait_for(lambda: "looked at most by" in browser.find_element(By.CSS_SELECTOR, ".note").text)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
