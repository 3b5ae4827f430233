"""Bugs of this field, put into the coordinator's C++ on purpose, each caught by a check of processed.py.

One build holds them all: every place reads `pearl_bug(NAME) ? wrong : right`, and PEARL_BUG in the
environment says which is on. It lives in a process of its own, in place of pearl_rt._C and _testing. That
process forks one more for every bug: `python tests/exactness/mutants.py MODULE.so < CASES`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
NATIVE = FAKES / "native"
PYBIND = """
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
"""
MODULE = """
#include "python/failures.h"
namespace pearl {
void bind_coordinator(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_scripted(pybind11::module_& m);
}
PYBIND11_MODULE(_C, m) {
  pearl::translate_failures();
  pearl::bind_coordinator(m);
  pearl::bind_sampling(m);
  pearl::bind_scripted(m);
}
"""
SWITCH = """
#include <cstdlib>
#include <cstring>
inline bool pearl_bug(const char* name) {
  static const char* const on = std::getenv("PEARL_BUG");
  return on != nullptr && std::strcmp(on, name) == 0;
}
"""
FLAGS = ("-std=c++20", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread")


Case = tuple[str, str, dict[str, Any]]  # a bug, the name of a check of processed.py, the check's arguments


@dataclass(frozen=True)
class Edit:
    """One place of a bug: `text` takes the place of `right`, ON being whether the bug is on."""

    place: str  # below csrc
    right: str
    text: str

    @classmethod
    def expression(cls, place: str, right: str, wrong: str) -> "Edit":
        """One value instead of another."""
        return cls(place, right, f"(ON ? ({wrong}) : ({right}))")

    @classmethod
    def statement(cls, place: str, right: str, wrong: str) -> "Edit":
        """Some statements instead of others."""
        return cls(place, right, f"if (ON) {{ {wrong} }} else {{ {right} }}")


@dataclass(frozen=True)
class Bug:
    """Where it is put in, and the check that must catch it."""

    edits: tuple[Edit, ...]
    check: str
    arguments: dict[str, Any] = field(default_factory=dict)


LAW = {"temperature": 0.8, "strategy": "sd", "gamma": 3, "runs": 20_000}
# A chance that is drawn from all of 0 to 1 shows less: more runs.
BY_CHANCE = {"temperature": 1.5, "strategy": "sd", "gamma": 2, "runs": 60_000, "slots": 64, "stop": 5}
RULES = {"first": 0, "runs": 40}
PARALLEL = RULES | {"drafter": "parallel"}
STEPS, DRAFT, STOP, LOOKUP, NOISE, JUDGE, STATE = (
    "cpu/lane/cpu_steps.cpp",
    "drafters/model_drafter.cpp",
    "drafters/stop_rule.cpp",
    "drafters/lookup_drafter.cpp",
    "core/noise.h",
    "sampling/judge.cpp",
    "coordinator/state.h",
)
PURPOSE, PLACE = "static_cast<uint32_t>(purpose)", "static_cast<uint64_t>(position)"
ONE_COUNTER = "purpose == Purpose::{} ? 0u : uint32_t(purpose)"
HALF_POSITIONS = Edit.expression(NOISE, PLACE, "uint64_t(position) >> 1")


def bug(check: str, arguments: dict[str, Any], *edits: Edit) -> Bug:
    return Bug(edits, check, arguments)


BUGS = {
    "ratio upside down": bug(
        "law_is_kept",
        LAW,
        Edit.expression(
            JUDGE,
            "u * draft_weight * target.sum <= target_weight * draft.sum",
            "u * target_weight * draft.sum <= draft_weight * target.sum",
        ),
    ),
    "residual against a q that was not filtered": bug(
        "law_is_kept",
        LAW,
        Edit.statement(
            DRAFT,
            "transformer_->apply(s.transform[b], s.temperature[b], b, prefix, row, vocab);",
            "const float* copy = transformer_->copy(s.transform[b], s.temperature[b], b, prefix, row, vocab);"
            "return sample(copy, vocab, s.temperature[b], s.seed[b], position, draft_purpose(s.judge));",
        ),
    ),
    "one counter for draft and residual": bug(
        "law_is_kept", LAW, Edit.expression(NOISE, PURPOSE, ONE_COUNTER.format("kResidual"))
    ),
    "one counter for draft and accept": bug(
        "law_is_kept", LAW, Edit.expression(NOISE, PURPOSE, ONE_COUNTER.format("kAccept"))
    ),
    "one seed for two positions": bug("law_is_kept", LAW, HALF_POSITIONS),
    "PEARL's published seeding, of unrelated models": bug(
        "plain_law_is_kept",
        {"case": "V8-L3-unrelated", "strategy": "pearl"},
        HALF_POSITIONS,
        Edit.expression(NOISE, PURPOSE, "0u"),
    ),
    "PEARL's published seeding, of opposite models": bug(
        "plain_law_is_kept",
        {"case": "V16-L2-opposite", "strategy": "sd"},
        HALF_POSITIONS,
        Edit.expression(NOISE, PURPOSE, "0u"),
    ),
    "uniform equal to 0": bug(
        "uniforms_lie_above_zero",
        {},
        Edit.expression(
            NOISE,
            "static_cast<float>(static_cast<int32_t>(word & 0xFFFFu)) + 0.5f",
            "static_cast<float>(static_cast<int32_t>(word & 0xFFFFu))",
        ),
    ),
    "argmax declared as softmax": bug(
        "law_is_kept",
        LAW,
        Edit.expression(
            DRAFT,
            "sample(row, vocab, s.temperature[b], s.seed[b], position, draft_purpose(s.judge))",
            "sample(row, vocab, 0.0f, s.seed[b], position, draft_purpose(s.judge))",
        ),
    ),
    "pending tokens searched for ends": bug(
        "rounds_are_the_rules", RULES, Edit.expression(STEPS, "end < committed", "end < committed + pending")
    ),
    "pending tokens counted in max_tokens": bug(
        "rounds_are_the_rules",
        RULES,
        Edit.expression(STEPS, "end == s.max_total_len[b]", "end + pending >= s.max_total_len[b]"),
    ),
    "draft cache without the last accepted token": bug(
        "rounds_are_the_rules",
        RULES,
        Edit.expression(DRAFT, "std::min(end - 2, s.draft_fed[b])", "end - 1"),
    ),
    "draft cache rolled back one too far": bug(
        "rounds_are_the_rules",
        RULES,
        Edit.statement(
            DRAFT,
            "feeder_->push(b, feed, stop - start, start, rows, s.draft_row(b, position));",
            "feeder_->push(b, feed, stop - start, start - (drafted_[b] == 1), rows, "
            "s.draft_row(b, position));",
        ),
    ),
    "target cache rolled back one too few": bug(
        "tokens_are_those_of_ar",
        RULES,
        Edit(STEPS, "const int64_t first = s.committed[b] - 1", "const int64_t first = s.committed[b] - !ON"),
    ),
    "-1 fed to the draft": bug(
        "rounds_are_the_rules",
        RULES,
        Edit.expression(STEPS, "verdict.next_token >= 0", "verdict.next_token >= -1"),
    ),
    "penalties that do not see pending tokens": bug(
        "tokens_are_those_of_ar",
        RULES,
        Edit(JUDGE, "args.position + row, rows->prompt_len", "args.position + (!ON) * row, rows->prompt_len"),
    ),
    "draft penalties that do not see the window": bug(
        "rounds_are_the_rules", RULES, Edit(DRAFT, "s.window(b), drafted}", "s.window(b), drafted * !ON}")
    ),
    "a certain draft judged as if drawn from the target's row": bug(
        "law_is_kept",
        LAW | {"drafter": "lookup"},
        Edit.expression(JUDGE, "u * target.sum <= target_weight", "u * target_weight <= target_weight"),
    ),
    "a refused certain draft recovered all the same": bug(
        "law_is_kept",
        LAW | {"drafter": "lookup"},
        Edit.expression(JUDGE, "first + i == certain", "first + i < 0"),
    ),
    "a lookup that sees rejected tokens as text": bug(
        "lookup_rounds_are_the_rules",
        RULES,
        Edit(LOOKUP, "at < s.committed[b]; ++at", "at < s.committed[b] + ON; ++at"),
    ),
    "a stop that looks at the judge's noise": bug(
        "law_is_kept",
        LAW | {"stop": 1},
        Edit.expression(
            DRAFT,
            "stops_[b].takes(row, vocab, s.temperature[b])",
            "stops_[b].takes(row, vocab, s.temperature[b]) && "
            "uniform(noise_words(s.seed[b], position, Purpose::kAccept, 0).w[0]) < 0.7f",
        ),
    ),
    "a stop that looks at the token it drew": bug(
        "law_is_kept",
        LAW | {"stop": 1},
        Edit(
            DRAFT,
            "  return token < 0 && could_draft ? kNothing : token;",
            "  if (ON && token >= 0 && row[token] < scan_row(row, vocab).max) return kNothing;\n"
            "  return token < 0 && could_draft ? kNothing : token;",
        ),
    ),
    "a stop by chance that looks at the judge's noise": bug(
        "law_is_kept",
        BY_CHANCE,
        Edit.expression(STOP, "Purpose::kStop", "Purpose::kAccept"),
    ),
    "a stop by chance that looks at the draft's noise": bug(
        "law_is_kept",
        BY_CHANCE,
        Edit.expression(NOISE, PURPOSE, ONE_COUNTER.format("kStop")),
    ),
    "a chance of what fell": bug(
        "rounds_are_the_rules",
        RULES,
        Edit.expression(STOP, "words + 1 + rate.stood", "words + count - 1 - rate.stood"),
    ),
    "a stop that is not told of what fell": bug(
        "rounds_are_the_rules", RULES, Edit(STOP, "all_.add(!fell)", "all_.add(ON || !fell)")
    ),
    "mask rows left in the draft's cache": bug(
        "rounds_are_the_rules",
        PARALLEL,
        Edit(DRAFT, "s.draft_fed[b] = first;", "s.draft_fed[b] = first + ON * (rows - 1);"),
    ),
    "rows of masks one place late": bug(
        "rounds_are_the_rules",
        PARALLEL,
        Edit(DRAFT, "stop = position + rows - 1;", "stop = position + rows - !ON;"),
    ),
    "one noise for the rows of a pass": bug(
        "law_is_kept",
        LAW | {"drafter": "parallel"},
        Edit.expression(
            DRAFT,
            "sample_draft(b, position, drafted_[b], s.draft_row(b, position), vocab)",
            "sample_draft(b, first, drafted_[b], s.draft_row(b, position), vocab)",
        ),
    ),
    "padded vocabulary chosen": bug(
        "tokens_are_those_of_ar",
        RULES,
        Edit(
            DRAFT,
            "const int vocab = std::min(s.vocab_size, s.draft_vocab_size);",
            "const int vocab = ON ? s.draft_vocab_size : std::min(s.vocab_size, s.draft_vocab_size);",
        ),
    ),
    "parameters left to the next request": bug(
        "nothing_outlives_a_request",
        RULES,
        Edit.statement(
            STATE,
            "transform[slot] = request.transform;",
            "if (request.transform.any(1.0f)) transform[slot] = request.transform;",
        ),
    ),
}


def sources() -> dict[str, str]:
    """Changed files below csrc, with every bug in its place. Raises AssertionError where a place is gone."""
    changed: dict[str, str] = {}
    for name, bug in BUGS.items():
        for edit in bug.edits:
            original = (ROOT / "csrc" / edit.place).read_text()
            assert original.count(edit.right) == 1, f"{edit.place} has not once: {edit.right}"
            text = changed.get(edit.place, original)
            at = text.rindex(edit.right)  # behind what other bugs of the same place have put there
            new = edit.text.replace("ON", f'pearl_bug("{name}")')
            changed[edit.place] = text[:at] + new + text[at + len(edit.right) :]
    return {place: f"#include <pearl_bug.h>\n{text}" for place, text in changed.items()}


def includes(source: Path) -> set[str]:
    """Every header of csrc that it includes, and itself, below csrc."""
    csrc, found, todo = ROOT / "csrc", set(), [source]
    while todo:
        text = todo.pop().read_text()
        new = {name for name in re.findall(r'^#include "(.+)"', text, re.M) if (csrc / name).exists()} - found
        found |= new
        todo += [csrc / name for name in new]
    return found | {str(source.relative_to(csrc))}


def build() -> Path:
    """Compiles what the bugs change, and links it with the rest of csrc as the build made it -> the module.
    Kept until a source is newer.
    """
    import fake_cuda
    import pybind11  # only needed to build

    home = ROOT / "build" / "mutants"
    module = home / "_C.so"
    rest = fake_cuda.native_library()
    newest = max(
        p.stat().st_mtime
        for p in (*ROOT.glob("csrc/**/*.[ch]*"), *FAKES.glob("native/*"), Path(__file__), rest)
    )
    if module.exists() and module.stat().st_mtime > newest:
        return module
    changed = sources()
    bindings = {"pearl_bug.h": f"#pragma once{SWITCH}", "pybind.h": PYBIND, "module.cpp": MODULE}
    for place, text in (changed | bindings).items():
        path = home / "csrc" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    compiler = os.environ.get("CXX", "c++")
    folders = (home / "csrc", ROOT / "csrc", FAKES, pybind11.get_include(), sysconfig.get_path("include"))
    command = [compiler, *FLAGS, "-DPEARL_NO_CLONES", *(f"-I{folder}" for folder in folders)]
    header = home / "csrc" / "pybind.h"  # parsed once for all bindings
    subprocess.run([*command, "-O0", "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

    def compile_one(source: Path) -> Path:
        edited = home / source.relative_to(ROOT)
        target = home / f"{source.stem}.o"
        flags = ["-O0", "-include", header] if source in bound else ["-O1"]
        path = edited if edited.exists() else source
        subprocess.run([*command, *flags, "-c", path, "-o", target], check=True)
        return target

    rooms = [
        room for room in (ROOT / "csrc").iterdir() if room.is_dir() and room.name not in ("cuda", "python")
    ]
    candidates = sorted(path for room in rooms for path in room.rglob("*.cpp"))
    native = [path for path in candidates if includes(path) & changed.keys()]
    native.append(NATIVE / "scripted_executor.cpp")
    bound = [ROOT / "csrc" / "python" / "bind_coordinator.cpp", ROOT / "csrc" / "module.cpp"]
    bound += [NATIVE / "bind_sampling.cpp", NATIVE / "bind_scripted.cpp"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, [*bound, *native]))
    subprocess.run([compiler, "-shared", "-pthread", *objects, rest, "-o", module, "-ldl"], check=True)
    return module


def caught(module: Path, cases: list[Case]) -> list[str]:
    """What each check says of the build with its bug on; "" if it finds nothing wrong."""
    paths = os.pathsep.join(
        map(str, (ROOT, *(ROOT / "tests" / folder for folder in ("fakes", "support", "exactness"))))
    )
    done = subprocess.run(
        [sys.executable, __file__, module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def forked(case: Case, write: int) -> int:
    """Runs a case in a child, which writes what its check says -> the child's id."""
    import processed

    from pearl_rt.errors import PearlError

    child = os.fork()
    if child == 0:
        bug, check, arguments = case
        os.environ["PEARL_BUG"] = bug  # read once, when the module first asks
        try:
            getattr(processed, check)(**arguments)
        except (AssertionError, PearlError) as error:
            os.write(write, f"{type(error).__name__} {error}"[:300].encode())
        os._exit(0)
    os.close(write)
    return child


def main(module: str, cases: list[Case]) -> list[str]:
    spec = importlib.util.spec_from_file_location("pearl_rt._C", module)
    assert spec is not None and spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.modules["pearl_rt._C"] = sys.modules["pearl_rt._testing"] = native
    import processed

    assert processed._C is native
    said, running, todo = [""] * len(cases), {}, list(enumerate(cases))
    while todo or running:
        if todo and len(running) < len(os.sched_getaffinity(0)):
            number, case = todo.pop(0)
            read, write = os.pipe()
            running[forked(case, write)] = number, read
            continue
        child, status = os.wait()
        number, read = running.pop(child)
        assert status == 0, f"{cases[number]} ended with status {status}"
        with os.fdopen(read) as pipe:
            said[number] = pipe.read()
    return said


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.load(sys.stdin))))
