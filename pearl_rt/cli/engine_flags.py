"""How an engine is built, as flags of a command line. Values are checked by the engine, whose errors name the
way out.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pearl_rt.errors import ConfigError
from pearl_rt.strategy.planner import MAX_GAMMA, PLACEMENTS, STRATEGIES

if TYPE_CHECKING:
    from pearl_rt.engine import Engine


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """The models, and the options of Engine."""
    parser.add_argument(
        "--target", type=Path, help="directory of the target model (config.json, safetensors)"
    )
    parser.add_argument("--draft", type=Path, help="directory of a small model with the same tokenizer")
    parser.add_argument("--strategy", default="auto", help=f"auto, {', '.join(STRATEGIES)}; default auto")
    parser.add_argument("--gamma", type=int, help=f"drafts per window, 1 to {MAX_GAMMA}; default: measured")
    parser.add_argument("--placement", default="auto", help=f"auto, {', '.join(PLACEMENTS)}; default auto")
    parser.add_argument("--judge", default="rejection", help="rejection or coupled; default rejection")
    parser.add_argument(
        "--dtype", default="auto", help="auto, bfloat16, float32, on a GPU float16; default: the checkpoint's"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N, or interpret (the kernels in their interpreter: slow, for tests)",
    )
    parser.add_argument("--draft-device", help="cuda:N or cpu, for the draft; default: the target's")
    parser.add_argument("--form", default="events", help="of a GPU's rounds: events, graph or eager")
    parser.add_argument("--max-model-len", type=int, help="tokens of prompt and answer")
    parser.add_argument("--max-num-seqs", type=int, help="sequences at once; default 8 on the CPU, else 1")
    parser.add_argument(
        "--kv-cache-tokens", type=int, help="KV cache of all sequences; default max-num-seqs x max-model-len"
    )
    parser.add_argument("--threads", type=int, help="cores to use; default all")
    parser.add_argument("--isa", help="instruction set of the executor; see `info`")


def target_directory(options: argparse.Namespace) -> Path:
    """--target. Raises ConfigError, which names the pair that ships, if it is missing."""
    if options.target is not None:
        return Path(options.target)
    shipped = Path("models/target")
    hint = f"; --target {shipped} --draft models/draft is the pair that ships" if shipped.is_dir() else ""
    raise ConfigError(f"--target is missing: give the directory of a model{hint}")


def open_engine(options: argparse.Namespace, **further: Any) -> "Engine":
    """The engine that parsed flags ask for; `further` are options of Engine without a flag here."""
    target = target_directory(options)
    from pearl_rt.engine import Engine

    return Engine.from_pretrained(
        target,
        options.draft,
        strategy=options.strategy,
        gamma=options.gamma,
        judge=options.judge,
        device=options.device,
        draft_device=options.draft_device,
        form=options.form,
        dtype=options.dtype,
        placement=options.placement,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_tokens=options.kv_cache_tokens,
        num_threads=options.threads,
        isa=options.isa,
        **further,
    )
