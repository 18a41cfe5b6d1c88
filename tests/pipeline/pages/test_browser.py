"""What a browser shows of the app."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from matcher.calibration import Calibration
from pipeline.pages.app import page_of
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import Generation, LocalService
from pipeline.service.metrics import Metrics
from tests.photos import write_photos
from tests.pipeline.pages.browser import Page
from tests.pipeline.service.servers import on_a_thread, wait_for
from tests.world import scan

pytestmark = pytest.mark.slow
IMAGE = "COCO_train2014_000000000003.jpg"
COUNT = 90  # photos of the album: more than two pages of the app
NAMED = {"button", "link", "textbox", "searchbox", "checkbox", "combobox", "image", "DisclosureTriangle"}


@pytest.fixture(scope="module")
def album(world: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with a second store: photos in nested folders, one a day from 2030 on: newer than the world's."""
    folder = tmp_path_factory.mktemp("album") / "here"
    shutil.copytree(world, folder)
    photos = folder / "album"
    write_photos(photos, COUNT)
    for index, path in enumerate(sorted(photos.glob("*.jpg"))):
        inside = photos / ("2024/sea", "2024/alps", "family")[index % 3]
        inside.mkdir(parents=True, exist_ok=True)
        os.utime(path.rename(inside / path.name), (1_893_499_200 + 86_400 * index,) * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
        assert (
            scan("extract", "--images", "album", "--num-regions", "6", "--workers", "0", "--device", "cpu").exit_code
            == 0
        )
    return folder


@pytest.fixture(scope="module")
def service(album: Path, small_weights: Path) -> Iterator[LocalService]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(album)
        config = ServeConfig(run="runs/t2i_mean", weights=str(small_weights), device="cpu", watch=0)
        yield LocalService(config, Metrics(), say=lambda _: None)


@pytest.fixture(scope="module")
def address(service: LocalService) -> Iterator[str]:
    with on_a_thread(Server(service, service.metrics, page=page_of(service))) as (_, _, url):
        yield url


@pytest.fixture
def page(driver: Any, address: str, album: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The app. Its console holds no error afterwards."""
    monkeypatch.chdir(album)
    driver.get_log("browser")  # those of the test before
    page = Page(driver, address)
    page.open()
    yield page
    with suppress(Exception):
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_library_before_any_query(page: Page) -> None:
    wait_for(lambda: len(page.names) == 40)
    assert page.status == f"{COUNT + 20} photos, newest first"
    dates = page.texts("#gallery .caption")
    assert [text[:10] for text in dates] == sorted((text[:10] for text in dates), reverse=True)
    while len(page.names) < COUNT + 20:  # endless
        before = len(page.names)
        page.run("scrollTo(0, document.body.scrollHeight)")
        wait_for(lambda before=before: len(page.names) > before)
    assert len(set(page.names)) == COUNT + 20
    assert not page.one("#scores").is_displayed()


def test_a_query_replaces_what_was_shown_and_is_the_address(page: Page) -> None:
    library = page.shown
    page.ask("a dog by a tree")
    assert "q=a+dog+by+a+tree" in page.driver.current_url
    dogs = page.shown
    page.ask("a boat")
    boats = page.shown
    assert len({tuple(library), tuple(dogs), tuple(boats)}) == 3
    page.open("?q=a+boat")  # the address alone shows the same
    assert page.one("#query").get_attribute("value") == "a boat"
    assert page.shown == boats
    while page.query:  # back to where it began
        before = page.query, page.shown
        page.driver.back()
        wait_for(lambda before=before: (page.query, page.shown) != before)
        page.settle()
    assert page.shown[: len(library)] == library


def test_a_photo_opens_large_and_its_words_go_with_it(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.ask("a dog by a tree")
    page.all("#gallery button.photo")[1].click()
    words = wait_for(lambda: page.all(".lightbox .words button"))
    assert [word.text for word in words] == ["a", "dog", "by", "a", "tree"]  # no start and end marks
    assert [word.text for word in page.all(".words .on")] in (["dog"], ["tree"])  # no function word comes first
    ActionChains(page.driver).move_to_element(words[4]).perform()
    assert "“tree” looks most at the marked region" in page.one(".note").text
    assert page.heading.startswith("2 · ")
    page.press(Keys.ARROW_RIGHT)
    wait_for(lambda: page.heading.startswith("3 · "))
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait_for(lambda: page.heading.startswith("1 · "))
    assert not page.one("[aria-label='Previous photo']").is_enabled()
    for close in (lambda: page.one("[aria-label=Close]").click(), lambda: page.press(Keys.ESCAPE)):
        assert "photo=" in page.driver.current_url
        close()
        wait_for(lambda: not page.all("dialog[open]") and "photo=" not in page.driver.current_url)
        page.all("#gallery button.photo")[0].click()
        wait_for(lambda: page.all("dialog[open]"))
    page.driver.back()
    wait_for(lambda: not page.all("dialog[open]"))
    page.ask("a boat")
    page.all("#gallery button.photo")[0].click()
    wait_for(lambda: page.texts(".lightbox .words button") == ["a", "boat"])  # nothing of the query before


def test_an_open_page_shows_no_photo_that_was_put_in_the_place_of_the_one_it_found(page: Page) -> None:
    page.ask("a dog by a tree")
    found = Path(page.run("return shown[0].path"))
    content, times = found.read_bytes(), found.stat()
    try:
        found.write_bytes(Path(page.run("return shown[1].path")).read_bytes())
        page.all("#gallery button.photo")[0].click()
        assert wait_for(lambda: page.texts("dialog .missing")) == ["cannot be shown, or changed since the search"]
        wait_for(lambda: "changed since it was found; search again" in page.one("dialog .body").text)
    finally:
        found.write_bytes(content)
        os.utime(found, ns=(times.st_atime_ns, times.st_mtime_ns))
    page.driver.get_log("browser")  # two refusals


def test_a_photo_that_is_gone_or_was_not_compared_is_said(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.ask("a dog by a tree")
    found = Path(page.run("return shown[0].path"))
    moved = found.rename(found.with_suffix(".moved"))
    try:
        page.ask("a boat")
        (marked,) = (text for text in page.texts("#gallery .caption") if " · its file is gone" in text)
        assert marked.endswith(found.name)
    finally:
        moved.rename(found)  # which touches it
    page.driver.get_log("browser")  # of the photo that could not be sent
    monkeypatch.setattr("pipeline.service.library.MOST_READ", 0)
    page.ask("a dog by a tree")
    (marked,) = (text for text in page.texts("#gallery .caption") if " · may have changed since" in text)
    assert marked.endswith(found.name)


def test_an_open_page_says_what_is_searched_by_now(page: Page, service: LocalService) -> None:
    """As after the app was started again with other stores."""
    before = page.texts("h1")
    generation, page_was = service.generation, page.run("return window.marked = 1")
    try:
        service.generation = Generation(replace(service.config, features=("features/album",)), lambda _: None)
        page.one("#query").send_keys("a boat")
        wait_for(lambda: page.texts("h1") == [f"{COUNT} photos in features/album"])
        wait_for(lambda: page.found == str(COUNT))
        assert (page.query, page_was, page.run("return window.marked ?? 0")) == ("a boat", 1, 0)
        assert not page.all("#store")
    finally:
        service.generation = generation
    page.one("#query").send_keys(" by a tree")
    wait_for(lambda: page.texts("h1") == before and page.all("#store"))
    page.settle()


def test_arrow_keys_go_on_past_what_is_loaded(page: Page) -> None:
    from selenium.webdriver import Keys

    page.ask("a dog")
    assert len(page.names) == 40
    page.all("#gallery button.photo")[38].click()
    for rank in range(40, 44):
        wait_for(lambda: page.one("[aria-label='Next photo']").is_enabled())
        page.press(Keys.ARROW_RIGHT)
        wait_for(lambda rank=rank: page.heading.startswith(f"{rank} · "))


def test_what_can_be_done_with_a_photo(page: Page, album: Path) -> None:
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.all("#gallery button.photo")[0].click()
    name = f"2024/{'sea' if (COUNT - 1) % 3 == 0 else 'alps'}" if (COUNT - 1) % 3 < 2 else "family"
    path = album / "album" / name / f"{COUNT - 1:03}.jpg"
    assert page.heading == f"{name}/{path.name}"  # no rank and no score without a query
    assert str(path) in page.one(".lightbox .body").text
    original, download = page.button("Original"), page.button("Download")
    assert (
        page.run("return fetch(arguments[0].href).then((r) => r.arrayBuffer()).then((b) => b.byteLength)", original)
        == path.stat().st_size
    )
    assert original.get_attribute("target") == "_blank"
    assert all(
        "/original?version=" in link.get_attribute("href") for link in (original, download)
    )  # never a later file
    assert download.get_attribute("download") is not None
    page.button("Copy path").click()
    wait_for(lambda: "Copied" in page.texts(".actions button"))
    assert page.run("return navigator.clipboard.readText()") == str(path)


def test_similar_photos_and_a_sentence(page: Page) -> None:
    page.ask("a dog")
    page.all("#gallery button.photo")[0].click()
    wait_for(lambda: page.all("dialog[open]"))
    own = page.names[0]
    page.button("Similar photos").click()
    wait_for(lambda: page.all("#like img") and page.status.startswith(f"{COUNT + 19} photos ranked"))
    assert "like=" in page.driver.current_url
    assert own not in page.names  # itself apart
    alone = page.shown
    page.ask("a boat")
    assert "like=" in page.driver.current_url
    assert page.shown != alone
    page.one("#like button").click()
    wait_for(lambda: not page.all("#like img") and page.found == f"{COUNT + 20}")
    assert page.query == "a boat"


def test_scores_are_explained_by_what_was_asked(page: Page) -> None:
    meaning = lambda: page.one("#meaning").get_attribute("textContent")  # noqa: E731
    page.ask("a dog")
    assert "the words of the sentence" in meaning()
    page.all("#gallery button.photo")[0].click()
    wait_for(lambda: page.all("dialog[open]"))
    page.button("Similar photos").click()
    wait_for(lambda: "those of the photo to compare with" in meaning())
    page.settle()
    page.ask("a boat")
    assert "1 / (60 + rank) of both" in meaning()


def test_a_selection_is_kept_and_saved(page: Page, album: Path, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    chosen = [page.names[index] for index in (2, 0)]
    for index in (2, 0):
        page.all(".pick")[index].click()
    page.ask("a boat")
    assert page.one("#selection").text.startswith("2 selected")
    assert page.one("#selection").get_attribute("aria-label") == "Selected photos"
    before = "return document.getElementById('selection').compareDocumentPosition(document.getElementById('gallery'))"
    assert page.run(before) & 4  # keys reach it: the list below has no end
    page.button("Save list").click()
    page.button("Save JSON").click()
    saved = wait_for(lambda: (tmp_path / "photos.txt").is_file() and (tmp_path / "photos.json").is_file())
    assert saved
    assert (tmp_path / "photos.txt").read_text().splitlines() == [str(album / "album" / name) for name in chosen]
    assert [photo["name"] for photo in json.loads((tmp_path / "photos.json").read_text())] == chosen
    page.button("Clear").click()
    assert not page.one("#selection").is_displayed()


def test_filters_are_in_the_address(page: Page) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.one("#folder")).select_by_visible_text("2024/sea")
    wait_for(lambda: page.status.startswith(f"{COUNT // 3} photos"))
    assert all(name.startswith("2024/sea/") for name in page.names)
    page.ask("a dog")
    assert page.found == f"{COUNT // 3}"
    Select(page.one("#folder")).select_by_visible_text("all")
    Select(page.one("#store")).select_by_visible_text("features/train2014")
    wait_for(lambda: page.found == "20")
    page.open("?until=1990-01-01")
    assert page.status == "No photo passes the filters."
    page.open("?store=features%2Falbum&since=2030-01-03&until=2030-01-12")
    wait_for(lambda: page.status.startswith("10 photos"))
    assert page.one("#since").get_attribute("value") == "2030-01-03"
    assert Select(page.one("#store")).first_selected_option.text == "features/album"


def test_scores_are_explained_and_weak_matches_said(
    page: Page, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = SimpleNamespace(is_weak=lambda score, among: False)
    monkeypatch.setitem(vars(service.generation.run), "calibration", judge)
    page.ask("a dog by a hous")
    assert "Unknown to the run: “hous” (nearest: “house”)" in page.status
    page.one("#scores summary").click()
    assert "A match is weak where a sentence about another photo would score as much" in page.one("#scores").text
    assert "No good match" not in page.status
    judge.is_weak = lambda score, among: True
    page.ask("a boat by a tree")
    assert "No good match: even the best is weak." in page.status
    assert all("weak match" in text for text in page.texts("#gallery .caption"))
    assert "not be marked" not in page.status
    monkeypatch.setitem(vars(service.generation.run), "calibration", None)
    page.ask("a boat")
    assert "Weak matches may not be marked: the run has no calibration" in page.status


def test_captions_for_a_photo_are_marked_and_leave_with_the_next_query(
    page: Page, album: Path, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_weak = Calibration((1.0,), (0.0,), ())
    monkeypatch.setitem(vars(service.generation.run), "calibration", all_weak)
    page.one("#upload").send_keys(str(album / "coco/train2014" / IMAGE))
    wait_for(lambda: len(page.all("#captions li")) == 10)
    assert page.status.endswith(", best first. No good match: even the best is weak.")
    assert all("weak match" in text for text in page.texts("#captions li"))
    page.ask("a boat")
    assert not page.all("#captions li, #captions img")


def test_the_first_photo_waits_for_the_captions(
    page: Page, album: Path, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding them takes longer than a request may; then the answer comes."""
    captions_of, tries = Generation.captions_of, []

    def slow(generation: Generation, content: bytes) -> Any:
        tries.append(page.status)
        if len(tries) < 3:
            raise TimeoutError
        return captions_of(generation, content)

    monkeypatch.setattr(Generation, "captions_of", slow)
    page.one("#upload").send_keys(str(album / "coco/train2014" / IMAGE))
    wait_for(lambda: len(page.all("#captions li")) == 10)
    assert tries[-1].endswith("the captions are read for the first time")
    assert page.status.startswith(f"Captions for {IMAGE}, best first")
    page.driver.get_log("browser")  # which names the 503s


def test_a_file_that_is_no_photo_is_named_and_the_photos_are_a_click_away(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    page.one("#upload").send_keys(str(tmp_path / "notes.jpg"))
    wait_for(lambda: page.status.startswith("notes.jpg: not an image"))
    wait_for(lambda: not page.all("#captions img"))  # nothing to show
    page.button("Back to the photos").click()
    wait_for(lambda: len(page.names) == 40)
    assert not page.all("#captions button")
    page.driver.get_log("browser")  # which names the refusal


def test_keys_alone_do_it(page: Page) -> None:
    from selenium.webdriver import Keys

    focused = lambda: page.run("const one = document.activeElement; return one.id || one.ariaLabel || one.className")  # noqa: E731
    assert focused() == "query"  # at once
    page.press("a dog")
    wait_for(lambda: page.status.startswith(f"{COUNT + 20} photos ranked"))
    for _ in range(20):
        page.press(Keys.TAB)
        if focused() == "photo":
            break
    assert focused() == "photo"
    page.press(Keys.ENTER)
    wait_for(lambda: page.all("dialog[open]"))
    assert focused() == "Close"
    for _ in range(20):
        page.press(Keys.TAB)
        assert page.run(
            "return document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"
        )
    page.press(Keys.ARROW_RIGHT)
    wait_for(lambda: page.heading.startswith("2 · "))
    page.press(Keys.ESCAPE)
    wait_for(lambda: not page.all("dialog[open]"))
    second = "return document.activeElement === document.querySelectorAll('#gallery button.photo')[1]"
    wait_for(lambda: page.run(second))  # at the photo that was seen last
    page.press(Keys.TAB, Keys.SPACE)
    wait_for(lambda: page.one("#selection").text.startswith("1 selected"))


def test_a_screen_reader_hears_names_and_changes(page: Page) -> None:
    def nameless() -> list[str]:
        nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in NAMED]
        assert len(shown) > 10
        return [json.dumps(node) for node in shown if not node.get("name", {}).get("value")]

    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    assert nameless() == []
    assert page.one("#status").get_attribute("role") == "status"  # is read out when it changes
    page.ask("a dog by a tree")
    page.all("#gallery button.photo")[0].click()
    wait_for(lambda: page.all(".lightbox .words button"))
    assert nameless() == []
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    (dialog,) = [node for node in nodes if node.get("role", {}).get("value") == "dialog"]
    assert dialog["name"]["value"].startswith("1 · ")
    assert page.one(".note").get_attribute("aria-live") == "polite"


def test_two_people_at_once(page: Page) -> None:
    first = page.driver.current_window_handle
    page.ask("a dog")
    dogs = page.shown
    page.driver.switch_to.new_window("tab")
    try:
        page.open("?q=a+boat+by+a+house")
        assert page.shown != dogs
        page.driver.switch_to.window(first)
        assert page.shown == dogs
        page.driver.refresh()
        wait_for(lambda: page.shown == dogs)
    finally:
        for handle in page.driver.window_handles:
            if handle != first:
                page.driver.switch_to.window(handle)
                page.driver.close()
        page.driver.switch_to.window(first)


def test_nothing_is_wider_than_a_phone(page: Page, album: Path) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    page.open("?q=a+dog+by+a+tree")
    wait_for(lambda: len(page.names) == 40)
    assert page.wide() == 390
    cut = "return [...document.querySelectorAll('#gallery .caption')].some((one) => one.scrollWidth > one.clientWidth)"
    page.run(
        "for (const one of document.querySelectorAll('#gallery li')) one.style.maxWidth = '5rem'"
    )  # as of narrow photos
    assert not page.run(cut)  # marks are read to their end; only names are cut
    page.all("#gallery button.photo")[0].click()
    wait_for(lambda: page.all(".lightbox .words button"))
    assert page.wide() == 390
    run = ("--run", "runs/t2i_mean", "--features", "features/train2014")
    scan("retrieve", "--query", "a dog by a tree", "--html", "answers.html", *run)
    scan("explain", "--image", IMAGE, "--caption", "a dog by a tree", "--output", "explained.html", *run)
    scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--html", "evaluated.html")
    for name in ("answers", "explained", "evaluated"):
        page.driver.get((album / f"{name}.html").as_uri())
        assert page.wide() == 390, name
