"""The commands of the training program, and the card that they write."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from recipes.train.__main__ import main
from recipes.train.arguments import build_parser
from recipes.train.card import readme, thinned, write_card
from recipes.train.data.corpus import is_held_out


def documented_commands() -> list[list[str]]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text().replace("\\\n", " ")
    lines = [
        line.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    starts = ("$T ", "python -m recipes.train ")
    return [shlex.split(line[len(start) :]) for start in starts for line in lines if line.startswith(start)]


class TestProgram:
    @pytest.mark.parametrize("argv", documented_commands(), ids=lambda argv: argv[0])
    def test_documented_commands_are_understood(self, argv: list[str]) -> None:
        assert build_parser(None).parse_args(argv).command == argv[0]

    def test_documents_show_every_command(self) -> None:
        shown = {argv[0] for argv in documented_commands()}
        assert shown == {
            *[
                "tokenizer",
                "pretrain",
                "prune",
                "distill",
                "write",
                "remember",
                "exit",
                "parallel",
                "diffusion",
                "eagle3",
                "evaluate",
                "prompts",
                "report",
            ]
        }

    def test_readme_is_written_from_the_card(self) -> None:
        curve = {"minutes": 1.5, "tokens": 1000, "curve": [{"loss": 2.25}], "settings": {"stage": "pretrain"}}
        loss = {"nats_per_token": 3.0, "bits_per_byte": 1.125, "tokens": 10, "bytes": 40, "parameters": 7}
        rates = {"1.0": 0.61, "0.8": 0.62}
        place = {"greedy": 0.7, "rejection": rates, "coupled": rates}
        card = {
            "target": curve,
            "held_out": {"target": loss},
            "acceptance": {"draft": {"held_out_text": place}},
        }
        text = readme(card)
        for figure in ("2.250", "1,000", "1.125", "4.00 bytes", "0.610", "0.700"):
            assert figure in text

    def test_prompts_are_held_out_text(
        self, text_directory: Path, tokenizer_directory: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "prompts.jsonl"
        arguments = ["prompts", "--data", str(text_directory), "--tokenizer", str(tokenizer_directory)]
        assert main([*arguments, "--out", str(out)]) == 0
        for line in out.read_text().splitlines():
            entry = json.loads(line)
            assert (
                is_held_out(entry["source"])
                and entry["prompt"] in (text_directory / entry["source"]).read_text()
            )

    def test_card_keeps_what_it_is_not_given(self, tmp_path: Path) -> None:
        write_card(tmp_path / "card.json", target={"curve": thinned([{"step": 1, "loss": 2.0}])})
        card = write_card(tmp_path / "card.json", held_out={})
        assert set(card) == {"target", "held_out"}

    def test_a_long_curve_is_thinned_by_means(self) -> None:
        curve = [{"step": i, "tokens": i, "loss": float(i % 2)} for i in range(1000)]
        rows = thinned(curve)
        assert len(rows) <= 200 and rows[-1]["step"] == 999
        assert all(abs(row["loss"] - 0.5) <= 0.11 for row in rows)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tokenizer", "--data", "/absent", "--out", "/tmp"], "neither 'stdlib' nor a directory"),
            (["evaluate", "--target", "/absent"], "tokenizer.json does not exist"),
            (["evaluate", "--target", "/absent", "--device", "cuda"], "no CUDA device"),
        ],
        ids=["no-data", "no-model", "no-cuda"],
    )
    def test_bad_input_is_one_line(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if "cuda" in arguments and torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
