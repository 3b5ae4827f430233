"""The page as its reader has it: what is typed, and what is seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page, expect


@dataclass
class Reader:
    """The page as its reader has it, and what it did that must not be."""

    page: Page
    bodies: list[dict[str, Any]] = field(default_factory=list)  # that it sent
    faults: list[str] = field(default_factory=list)

    def ask(self, text: str) -> None:
        self.page.locator("#question").fill(text)
        self.page.locator("#question").press("Enter")

    def wait_for_answers(self, count: int) -> None:
        """So many whole ones."""
        expect(self.page.locator(".answer")).to_have_count(count, timeout=30_000)
        expect(self.page.locator("#send")).to_be_enabled(timeout=60_000)

    def set(self, **fields: object) -> None:
        """Fields of the settings by their names."""
        self.page.locator("#settings").evaluate("own => { own.open = true; }")
        for name, value in fields.items():
            place = self.page.locator(f"[data-field={name}], [data-how={name}], #{name}")
            if place.evaluate("own => own.tagName") == "SELECT":
                place.select_option(str(value))
            else:
                place.fill(str(value))

    def number(self, selector: str) -> int:
        return int(self.page.locator(selector).inner_text().replace(",", ""))

    def legend(self) -> dict[str, int]:
        items = self.page.locator("#legend li").evaluate_all(
            "all => all.map(own => [own.dataset.origin, own.querySelector('b').textContent])"
        )
        return {origin: int(value.replace(",", "")) for origin, value in items}

    def coloured(self) -> dict[str, int]:
        """Tokens of the last answer, by how they are marked."""
        counts: dict[str, int] = {}
        marks = "all => [...all.at(-1).querySelectorAll('.token')].map(own => own.dataset.origin)"
        for origin in self.page.locator(".answer").evaluate_all(marks):
            counts[origin] = counts.get(origin, 0) + 1
        return counts
