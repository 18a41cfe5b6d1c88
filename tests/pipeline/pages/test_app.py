"""What a browser shows of the app and of the pages."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.pages.app import page_of
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from tests.world import scan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
IMAGE = "COCO_train2014_000000000003.jpg"


@pytest.fixture(scope="module")
def server(world: Path, small_weights: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        config = ServeConfig(run="runs/t2i_mean", weights=str(small_weights), device="cpu", watch=0)
        metrics = Metrics()
        service = LocalService(config, metrics, say=lambda _: None)
        yield Server(service, metrics, page=page_of(service))


def test_upload_is_offered_only_where_a_detector_serves_it(server: Server, inside: Path) -> None:
    client, generation = TestClient(server.app()), server.service.generation  # type: ignore[attr-defined]
    assert 'id="upload"' in client.get("/").text
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generation.__dict__, "index", replace(generation.index, uploads=False))
        assert 'id="upload"' not in client.get("/").text
        assert client.post("/v1/captions", content=b"x").status_code == 400


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
def test_the_app_in_a_browser(browser: Any, server: Server, inside: Path) -> None:
    import uvicorn
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    running = uvicorn.Server(uvicorn.Config(server.app(), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_for(lambda: running.started)
    port = running.servers[0].sockets[0].getsockname()[1]
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
    running.should_exit = True
    thread.join(10)


@pytest.mark.slow
def test_an_evaluation_is_sorted_in_a_browser(browser: Any, inside: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    asked = ["--run", "runs/t2i_mean", "--split", "all", "--folds", "2", "--bootstrap", "50", "--html", "sorted.html"]
    assert scan("evaluate", *asked).exit_code == 0
    browser.get((inside / "sorted.html").as_uri())
    find = lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
    names = lambda: [cell.text for cell in find("#recalls td:first-child")]  # noqa: E731
    assert names() == ["20 images", "95 % interval", "by chance", "2 folds of 10 images", "by chance"]
    find("#recalls tr:nth-child(2) th button")[
        1
    ].click()  # R@1: the folds are easier, and what belongs to a row stays below it
    assert names() == ["2 folds of 10 images", "by chance", "20 images", "95 % interval", "by chance"]
    assert find("#recalls th[aria-sort=descending]")
    for id_ in ("images", "captions"):
        data = lambda name: [one.get_attribute(name) for one in find(f"#{id_} .mistake")]  # noqa: B023, E731
        ranks = list(map(int, data("data-rank")))
        assert ranks == sorted(ranks, reverse=True)
        order = Select(browser.find_element(By.CSS_SELECTOR, f"[data-sorts={id_}]"))
        order.select_by_visible_text("lowest rank first")
        assert list(map(int, data("data-rank"))) == sorted(ranks)
        order.select_by_visible_text("alphabetical")
        assert data("data-text") == sorted(data("data-text"))


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
