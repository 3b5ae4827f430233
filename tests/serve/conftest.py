"""The package `openai` as the client of the server that a file of tests runs: its fixture `served`."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from serving import Served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as made:
        yield made
