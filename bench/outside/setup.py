"""Which peers run in processes of their own, where `make peers` put them, and which of them can run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.harness.environment import ROOT
from bench.harness.peers import Ids, Peer, first_words
from bench.outside.llama_cpp import LlamaCpp
from bench.outside.open_vino import OpenVino

FOLDER = ROOT / ".venv-peers"
TUNING_PROMPTS = 2


def outside_peers(
    names: Sequence[str], model: Path | None, num_threads: int, prompts: Ids, folder: Path = FOLDER
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those of these that start, and why the others don't. model: None without a checkpoint."""
    found: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    programs = {"llama.cpp": folder / "bin" / "llama-server", "openvino": folder / "bin" / "python"}
    for name in names:
        program = programs[name]
        if model is None or model.suffix != ".gguf":
            absent[name] = "reads GGUF files: pass --target FILE.gguf"
        elif not program.exists():
            absent[name] = f"there is no {program.name} in {folder.name}: run `make peers`"
        else:
            try:
                if name == "llama.cpp":
                    found[name] = LlamaCpp(program, model, num_threads, prompts[:TUNING_PROMPTS])
                else:
                    found[name] = OpenVino(program, model, num_threads)
            except Exception as error:  # a peer's fault is no fault of this run
                absent[name] = f"does not start: {first_words(error)}"
    return found, absent
