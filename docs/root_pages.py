"""A hook of mkdocs: pages of the site whose text stands at the top of the repository, where GitHub looks.

Knows which files, and how their links read from docs/.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("DESIGN.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this once it has listed docs/."""
    for name in PAGES:
        files.append(File.generated(config, name.lower(), content=from_docs((ROOT / name).read_text())))
    return files


def from_docs(text: str) -> str:
    """Links of a page at the top, as a page of docs/ has them."""
    text = text.replace("](docs/", "](")
    return re.sub(rf"\]\(({'|'.join(PAGES)})", lambda found: f"]({found[1].lower()}", text)
