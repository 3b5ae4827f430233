"""Minutes of training: which file names those of a draft, the shipped drafts, and files that are bad."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.model_pairs.minutes import FILE, trained_minutes
from pearl_rt.errors import CheckpointError
from recipes.train.card import read_card, readme

MODELS = Path(__file__).resolve().parents[3] / "models"
CARD = {
    "draft": {"minutes": 6.0},
    "distillation": {"of": "draft", "minutes": 22},
    "target": {"minutes": 50.0},
    "bare": {"tokens": 5},
    "held_out": {"draft": {"minutes": 7.0}},
}


@pytest.mark.parametrize(
    ("draft", "minutes"),
    [
        ("draft", 28),
        ("parallel", 16),
        ("diffusion", 15),
        ("smollm2/eagle3", 88),
        ("smollm2/exit", 14),
        ("smollm2/parallel", 20),
    ],
)
def test_of_what_ships(draft: str, minutes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder that one is in."""
    assert (MODELS / draft).is_dir() and trained_minutes(MODELS / draft) == minutes
    monkeypatch.chdir(MODELS / draft)
    assert trained_minutes(Path()) == minutes == trained_minutes(Path("..") / Path(draft).name)


def test_the_pages_of_what_ships_say_the_same() -> None:
    assert readme(read_card(MODELS / FILE)) == (MODELS / "README.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([\d.]+) minutes.*, ([\d.]+) million tokens \|",
        (MODELS / "smollm2/README.md").read_text(),
        re.M,
    )
    card = json.loads((MODELS / "smollm2" / FILE).read_text())
    assert {name: (run["minutes"], run["tokens"]) for name, run in card.items()} == {
        name: (float(minutes), round(float(millions) * 1e6)) for name, minutes, millions in rows
    }


def test_of_a_folder_and_of_the_one_above_it(tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    assert trained_minutes(draft) is None and trained_minutes(tmp_path / "absent") is None
    (tmp_path / FILE).write_text(json.dumps(CARD))
    assert trained_minutes(draft) == 28 and trained_minutes(tmp_path / "target") == 50
    for name in ("bare", "other", "held_out"):
        assert trained_minutes(tmp_path / name) is None
    (draft / FILE).write_text(json.dumps({"notes": {}}))
    assert trained_minutes(draft) == 28, "it names none itself"
    (draft / FILE).write_text(json.dumps({"first": {"minutes": 1.5}, "second": {"minutes": 2}}))
    assert trained_minutes(draft) == 3.5, "all runs in it are its own"


def test_a_draft_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "draft").write_bytes(b"GGUF")
    (tmp_path / FILE).write_text(json.dumps(CARD))
    assert trained_minutes(tmp_path / "draft") == 28


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "has another form"),
        (b'{"draft": 6.0}', "has another form"),
        *(
            (
                f'{{"draft": {{"minutes": {value}}}}}'.encode(),
                "minutes of 'draft' are .*: give a number above 0",
            )
            for value in ('"6"', "null", "true", "0", "-6", "NaN", "Infinity", "[6]")
        ),
    ],
)
@pytest.mark.parametrize("place", ["", "draft"])
def test_a_bad_file_is_named_with_the_way_out(
    tmp_path: Path, content: bytes, reason: str, place: str
) -> None:
    (tmp_path / "draft").mkdir()
    file = tmp_path / place / FILE
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{file}.* {reason}"):
        trained_minutes(tmp_path / "draft")
