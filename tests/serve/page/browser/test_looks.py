"""How the page looks and is used: a narrow screen, the keyboard, dark and light, contrast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from page_reader import Reader
from playwright.sync_api import expect
from serving import Served

Read = Callable[..., Reader]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
# [r, g, b] of a colour, whatever form the browser computes it in.
PAINTED = """colour => {
  const own = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  own.fillStyle = colour;
  own.fillRect(0, 0, 1, 1);
  return [...own.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


def luminance(rgb: list[int]) -> float:
    """As WCAG 2.2 defines it."""
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in rgb]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[int], other: list[int]) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colour(own: Reader, selector: str, name: str) -> list[int]:
    found = own.page.locator(selector).first.evaluate(f"own => getComputedStyle(own).{name}")
    return own.page.evaluate(PAINTED, found)


def talked(own: Reader, **fields: Any) -> Reader:
    own.set(**{"max_tokens": 60, "temperature": 0, "strategy": "pearl", "gamma": 3, **fields})
    own.ask("Hello")
    own.wait_for_answers(1)
    return own


def test_a_narrow_screen(reader: Read, served: Served) -> None:
    own = talked(reader(served, **PHONE), max_tokens=200)
    wide = own.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == 360
    for selector in ("#send", "#again", "#dark"):
        box = own.page.locator(selector).bounding_box()
        assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 360
    expect(own.page.locator("#send")).to_be_in_viewport()
    own.page.locator("#settings summary").scroll_into_view_if_needed()
    sizes = own.page.locator("input, select, textarea").evaluate_all(
        "all => all.map(own => parseFloat(getComputedStyle(own).fontSize))"
    )
    assert min(sizes) >= 16  # below, phones zoom in
    spread = own.page.locator("aside *").evaluate_all(
        "all => all.filter(own => !own.closest('.scroll, .places, .track') && own.getClientRects().length"
        " && own.getBoundingClientRect().right > innerWidth + 1).map(own => own.outerHTML.slice(0, 80))"
    )
    assert not spread


def test_the_keyboard_is_enough(reader: Read, served: Served) -> None:
    own = reader(served)
    own.page.keyboard.press("Tab")
    expect(own.page.locator(".skip")).to_be_focused()
    own.page.keyboard.press("Enter")
    expect(own.page.locator("#question")).to_be_focused()
    own.page.keyboard.type("one")
    own.page.keyboard.press("Shift+Enter")
    own.page.keyboard.type("two")
    expect(own.page.locator("#question")).to_have_value("one\ntwo")
    own.set(max_tokens=10)
    own.page.locator("#question").focus()
    own.page.keyboard.press("Enter")
    own.wait_for_answers(1)
    expect(own.page.locator("#question")).to_be_focused()
    assert own.bodies[0]["messages"][-1]["content"] == "one\ntwo"
    order = []
    for _ in range(40):
        own.page.keyboard.press("Tab")
        order.append(own.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order.index("send") < order.index("marks") < order.index("SUMMARY") < order.index("system")
    unnamed = own.page.locator("button, input, select, textarea").evaluate_all(
        "all => all.filter(own => !own.labels?.length && !own.textContent.trim()).map(own => own.outerHTML)"
    )
    assert not unnamed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader_and_can_be_told_apart(reader: Read, served: Served, scheme: str) -> None:
    own = talked(reader(served, color_scheme=scheme))
    paper = colour(own, "body", "backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for ground, words in (
        ("body", ".answer"),
        ("body", "#keys"),
        ("aside", "#speed-note"),
        ("aside", "#why"),
    ):
        back = colour(own, ground, "backgroundColor")
        assert contrast(back, colour(own, words, "color")) >= 4.5, words
    lines = {}
    for origin in ("accepted", "recovered", "bonus", "forced"):
        sample = f"#legend [data-origin={origin}] .sample"
        for ground in ("body", "aside"):
            back = colour(own, ground, "backgroundColor")
            assert contrast(back, colour(own, sample, "textDecorationColor")) >= 4.5, origin
        lines[origin] = own.page.locator(sample).evaluate("own => getComputedStyle(own).textDecorationStyle")
    assert len(set(lines.values())) == 4  # not by colour alone
    switch = own.page.get_by_role("switch", name="Dark")
    expect(switch).to_have_attribute("aria-checked", str(scheme == "dark").lower())
    switch.click()
    assert (luminance(colour(own, "body", "backgroundColor")) > 0.5) == (scheme == "dark")
    own.page.reload()
    assert (luminance(colour(own, "body", "backgroundColor")) > 0.5) == (scheme == "dark")
    switch.click()
    assert colour(own, "body", "backgroundColor") == paper


def test_marks_can_be_left_out(reader: Read, served: Served) -> None:
    own = talked(reader(served))
    mark = "own => getComputedStyle(own).textDecorationLine"
    token = own.page.locator(".token[data-origin=accepted]").first
    assert token.evaluate(mark) == "underline"
    assert "accepted draft, round " in token.get_attribute("title")
    own.page.locator("#marks").uncheck()
    assert token.evaluate(mark) == "none"


def test_the_lanes_move_with_the_slider(reader: Read, served: Served) -> None:
    own = talked(reader(served), max_tokens=120)
    slider = own.page.locator("#first-round")
    before = own.page.locator("#axis-begin").inner_text()
    slider.focus()
    own.page.keyboard.press("End")
    expect(own.page.locator("#axis-begin")).not_to_have_text(before)
    assert own.page.locator(".track .step").count() > 10
