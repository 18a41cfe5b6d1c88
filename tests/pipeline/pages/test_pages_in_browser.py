"""What a browser shows of the pages that commands write."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.service.servers import wait_for
from tests.world import scan

pytestmark = pytest.mark.slow
IMAGE = "COCO_train2014_000000000003.jpg"


def test_an_evaluation_is_sorted_in_a_browser(driver: Any, inside: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    asked = ["--run", "runs/t2i_mean", "--split", "all", "--folds", "2", "--bootstrap", "50", "--html", "sorted.html"]
    assert scan("evaluate", *asked).exit_code == 0
    driver.get((inside / "sorted.html").as_uri())
    find = lambda selector: driver.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
    names = lambda: [cell.text for cell in find("#recalls td:first-child:not(:empty)")]  # noqa: E731
    assert names() == ["20 images", "95% interval", "by chance", "2 folds of 10 images", "by chance"]
    find("#recalls tr:nth-child(2) th button")[
        1
    ].click()  # R@1: the folds are easier, and what belongs to a row stays below it
    assert names() == ["2 folds of 10 images", "by chance", "20 images", "95% interval", "by chance"]
    assert find("#recalls th[aria-sort=descending]")
    for id_ in ("images", "captions"):
        data = lambda name: [one.get_attribute(name) for one in find(f"#{id_} .mistake")]  # noqa: B023, E731
        ranks = list(map(int, data("data-rank")))
        assert ranks == sorted(ranks, reverse=True)
        order = Select(driver.find_element(By.CSS_SELECTOR, f"[data-sorts={id_}]"))
        order.select_by_visible_text("lowest rank first")
        assert list(map(int, data("data-rank"))) == sorted(ranks)
        order.select_by_visible_text("alphabetical")
        assert data("data-text") == sorted(data("data-text"))


def test_the_pages_in_a_browser(driver: Any, inside: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    scan("explain", "--image", IMAGE, "--caption", "a dog by a tree", "--run", "runs/t2i_mean", "--output", "b.html")
    driver.get((inside / "b.html").as_uri())
    words = driver.find_elements(By.CSS_SELECTOR, ".words button")
    dark = "return document.querySelector('canvas').getContext('2d').getImageData(0, 0, 192, 192).data.filter((v, i) => i % 4 === 3).reduce((a, b) => a + b, 0)"
    shades = []
    for word in words[1:3]:
        ActionChains(driver).move_to_element(word).perform()
        shades.append(driver.execute_script(dark))
        assert word.get_attribute("class") == "on"
    assert shades[0] > 0
    assert shades[0] != shades[1]  # another word, another part of the photo
    ActionChains(driver).move_to_element(driver.find_element(By.CSS_SELECTOR, ".stage rect")).perform()
    wait_for(lambda: "looks most (" in driver.find_element(By.CSS_SELECTOR, ".note").text)
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
