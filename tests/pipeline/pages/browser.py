"""What a person does in a browser."""

import json
from typing import Any

from tests.pipeline.service.servers import wait_for


class Page:
    """A browser at an address, and what people do there."""

    def __init__(self, driver: Any, url: str):
        self.driver, self.url = driver, url

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.url}/{query}")
        self.settle()

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return wait_for(lambda: self.all(selector))[0]

    def texts(self, selector: str) -> list[str]:
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")

    def button(self, text: str) -> Any:
        return next(one for one in self.all("button, a") if one.text == text)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def ask(self, text: str) -> None:
        query = self.one("#query")
        query.clear()
        query.send_keys(text)
        self.settle()
        assert "photos ranked" in self.status
        assert self.query == text

    def settle(self) -> None:
        """Wait until the list answers what is asked."""
        wait_for(lambda: self.one("#gallery").get_attribute("aria-busy") == "false")

    @property
    def query(self) -> str:
        return self.run("return new URLSearchParams(location.search).get('q') ?? ''")

    @property
    def status(self) -> str:
        return self.run("return document.getElementById('status')?.textContent ?? ''")

    @property
    def found(self) -> str:
        return self.status.split(" ")[0]

    @property
    def names(self) -> list[str]:
        """Of the photos listed, in order."""
        return self.run("return [...document.querySelectorAll('#gallery .caption')].map((one) => one.title)")

    @property
    def shown(self) -> list[str]:
        """Ranks, scores and names of the photos listed."""
        return self.texts("#gallery .caption")

    @property
    def heading(self) -> str:
        return "".join(self.texts("dialog[open] h2"))

    def wide(self) -> int:
        return self.run("return document.documentElement.scrollWidth")
