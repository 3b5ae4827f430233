"""The page's files, without a browser: what they are served with, what they load, and the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served, serving
from tiny_pairs import Pair

import pearl_rt.serve.page
from pearl_rt import Engine
from pearl_rt.serve.app import Settings
from pearl_rt.serve.page.files import PAGE_FILES

FOLDER = Path(pearl_rt.serve.page.__file__).parent
HTML, STYLE, PROGRAM = (
    (FOLDER / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js")
)
# As it was asked for, written out: a change of the policy is a change of this line.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    target, _ = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, draft="none", max_model_len=64, num_threads=1) as built:
        yield built


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, Settings("tiny")) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [("/", HTML, "text/html"), ("/page.css", STYLE, "text/css"), ("/page.js", PROGRAM, "text/javascript")],
)
def test_each_file_comes_with_the_policy(served: Served, path: str, text: str, kind: str) -> None:
    status, headers, body = served.call("GET", path)
    assert (status, body) == (200, text)
    assert headers["content-type"] == f"{kind}; charset=utf-8"
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert served.call("POST", path, {})[0] == 405


def test_every_file_of_the_folder_is_served() -> None:
    beside = {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", ".pyc", "")}
    assert beside == {name for name, _ in PAGE_FILES.values()}


def test_the_files_need_no_key_and_the_endpoints_do(engine: Engine) -> None:
    with serving(engine, Settings("tiny", api_key="sesame")) as served:
        for path in PAGE_FILES:
            assert served.call("GET", path)[0] == 200
        for path in ("/v1/models", "/stats", "/page.js/", "//"):
            assert served.call("GET", path)[0] == 401, path
        key = {"authorization": "Bearer sesame"}
        assert served.call("GET", "/v1/models", headers=key)[0] == 200


def test_another_host_gets_no_page(served: Served) -> None:
    for path in PAGE_FILES:
        assert served.call("GET", path, headers={"host": "evil.example"})[0] == 403


def test_nothing_is_loaded_from_elsewhere() -> None:
    for text in (HTML, STYLE, PROGRAM):
        assert "://" not in text and "@import" not in text and "url(" not in text
    own = {"page.css", "page.js", "#question"}
    for value in re.findall(r"\b(?:src|href|action|poster|srcset)=\"([^\"]*)\"", HTML):
        assert value in own or value.startswith("data:image/png;base64,"), value
    asked = re.findall(r"\bcall\(\"([^\"]*)\"|\[\"(v1/[^\"]*)\"", PROGRAM)
    assert {one or other for one, other in asked} == {
        "stats",
        "v1/models",
        "v1/completions",
        "v1/chat/completions",
    }


def test_the_policy_breaks_nothing() -> None:
    """What it forbids is not there: code and styles in the HTML."""
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", HTML)
    assert not re.search(r"\beval\(|new Function|setAttribute\(\"style\"", PROGRAM)


def test_text_of_a_model_is_never_html() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|createContextualFragment"
    )
    assert not re.search(forbidden, PROGRAM)
    assert PROGRAM.count("textContent") > 10


def test_the_program_finds_what_it_names() -> None:
    ids = re.findall(r"\sid=\"([\w-]+)\"", HTML)
    assert len(ids) == len(set(ids))
    named = set(re.findall(r"\bat\(\"([\w-]+)\"\)", PROGRAM))
    assert named and named <= set(ids), named - set(ids)
    for label in re.findall(r"(?:for|aria-labelledby|aria-describedby)=\"([\w-]+)\"", HTML):
        assert label in ids, label


def test_the_colours_are_of_the_origins() -> None:
    from pearl_rt.types.rounds import ORIGINS

    [told] = re.findall(r"const ORIGINS = \{(.*?)\};", PROGRAM, re.S)
    assert tuple(re.findall(r"^  (\w+):", told, re.M)) == ORIGINS
    styled = re.findall(r"^\[data-origin=\"(\w+)\"\] \{ --mark: var\(--(\w+)\)", STYLE, re.M)
    assert styled == [(kind, kind) for kind in ORIGINS]
    kinds = re.findall(r"--line-kind: (\w+)", STYLE)
    assert len(kinds) == len(set(kinds)) == len(ORIGINS) - 1  # "plain" has no line


def test_models_say_whether_there_is_a_chat(served: Served) -> None:
    assert served.call("GET", "/v1/models")[2]["data"][0]["has_chat_template"] is False
