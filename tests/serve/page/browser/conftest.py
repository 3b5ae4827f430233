"""A server of a tiny pair, and the page in a headless browser that no address outside can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from page_reader import Reader
from playwright.sync_api import Browser, sync_playwright
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
TEMPLATE = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]")
LENGTH = 32768  # so that no answer ends by itself before it is stopped


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=pytestconfig.getoption("--browser"), args=list(QUIET)
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pair = Pair.make("half-right", eos_token_ids=(256,), max_position_embeddings=LENGTH)
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, draft, device="cpu", max_model_len=LENGTH, max_num_seqs=1) as built:
        yield built


@pytest.fixture(scope="session")
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, Settings("tiny", TEMPLATE)) as running:
        yield running


@pytest.fixture
def reader(browser: Browser) -> Iterator[Callable[..., Reader]]:
    """Opens the page of a server. At the end of a test nothing may have gone wrong, nor gone out."""
    with ExitStack() as stack:
        opened: list[Reader] = []

        def read(served: Served, expected: tuple[str, ...] = (), **options: Any) -> Reader:
            """expected: parts of messages in the console that this test asks for. options: of a context."""
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
            stack.callback(context.close)
            found = Reader(context.new_page())
            home = f"http://127.0.0.1:{served.port}/"

            def look(request: Any) -> None:
                if not request.url.startswith((home, "data:", "blob:")):
                    found.faults.append(f"asked for {request.url}")
                if request.method == "POST":
                    found.bodies.append(request.post_data_json)

            def hear(message: Any) -> None:
                if message.type in ("error", "warning") and not any(e in message.text for e in expected):
                    found.faults.append(message.text)

            found.page.on("request", look)
            found.page.on("console", hear)
            found.page.on("pageerror", lambda error: found.faults.append(str(error)))
            found.page.goto(home)
            opened.append(found)
            return found

        yield read
        assert opened and not [fault for one in opened for fault in one.faults]
