"""Bugs of this field as edits of the coordinator's C++, each with the check that sees it: of processed.py, or
of beside.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


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
CHAINED = RULES | {"drafter": "chain"}
HEAD = RULES | {"drafter": "eagle3"}
SEVERAL = LAW | {"candidates": 3, "temperature": 1.5}
FILLED = RULES | {"drafter": "diffusion"}
STEPS, DRAFT, STOP, LOOKUP, CHAIN, EAGLE, TAPS, DIFFUSION, NOISE, JUDGE, STATE, CANDIDATES, BRANCHES = (
    "cpu/lane/cpu_steps.cpp",
    "drafters/model_drafter.cpp",
    "drafters/stop_rule.cpp",
    "drafters/lookup_drafter.cpp",
    "drafters/chain/chain_drafter.cpp",
    "drafters/eagle/eagle_drafter.cpp",
    "drafters/eagle/tap_rows.cpp",
    "drafters/diffusion/diffusion_drafter.cpp",
    "core/noise.h",
    "sampling/judge.cpp",
    "coordinator/state.h",
    "sampling/candidates/candidates.cpp",
    "cache/branches.h",
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
            "feeder_->push(b, feed, stop - start, start, rows, logits_at(b, position));",
            "feeder_->push(b, feed, stop - start, start - (drafted_[b] == 1), rows, logits_at(b, position));",
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
        "rounds_are_the_rules",
        RULES,
        Edit(DRAFT, "s.window(b, number), drafted}", "s.window(b, number), drafted * !ON}"),
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
            "sample_draft(b, 0, position, drafted_[b], s.draft_row(b, position), vocab)",
            "sample_draft(b, 0, first, drafted_[b], s.draft_row(b, position), vocab)",
        ),
    ),
    "a model's cache not told of what a lookup drafted": bug(
        "lookup_rounds_are_the_rules",
        CHAINED,
        Edit.expression(
            DRAFT,
            "std::min(s.draft_fed[b], end - 1)",
            "drafts_here ? std::min(s.draft_fed[b], end - 1) : s.draft_fed[b]",
        ),
    ),
    "a model's windows judged without what fell": bug(
        "lookup_rounds_are_the_rules",
        CHAINED,
        Edit(CHAIN, "slot.stood += fell ? 0 : 1;", "slot.stood += fell && !ON ? 0 : 1;"),
    ),
    "a chain that reads words behind drafts which are drawn again": bug(
        "lookup_rounds_are_the_rules",
        CHAINED,
        Edit(LOOKUP, "if (!reads_words) return;", "if (!ON && !reads_words) return;"),
    ),
    "windows that were filled not counted by a chain": bug(
        "lookup_rounds_are_the_rules",
        RULES | {"drafter": "diffusion chain"},
        Edit.expression(
            CHAIN,
            "s.kind(b, end + i) == DraftKind::kForced",
            "s.kind(b, end + i) != DraftKind::kSampled",
        ),
    ),
    "a row of d2t off by one": bug(
        "rounds_are_the_rules",
        HEAD,
        Edit(
            DRAFT,
            "row[ids_.target_of[i]] = logits[i]",
            "row[ids_.target_of[i]] = logits[(i + ON) % head_rows_]",
        ),
    ),
    "features of the wrong position": bug(
        "rounds_are_the_rules",
        HEAD,
        Edit(TAPS, "rows.features = row(b, start);", "rows.features = row(b, start - ON);"),
    ),
    "candidates judged with replacement": bug(
        "law_is_kept", SEVERAL, Edit(CANDIDATES, "q_[token] = 0.0f;", "if (!ON) q_[token] = 0.0f;")
    ),
    "one uniform for all candidates": bug(
        "law_is_kept",
        SEVERAL | {"candidates": 8, "temperature": 0.5, "gamma": 2},  # where many are tried
        Edit(CANDIDATES, "args.position, place);", "args.position, ON ? 0 : place);"),
    ),
    "candidates recovered from what the first one left": bug(
        "law_is_kept",
        SEVERAL,
        Edit(
            CANDIDATES,
            "take_away(p_.data(), p_sum,",
            "if (!ON || place == 0) take_away(p_.data(), p_sum,",
        ),
    ),
    "the rows of the window that is taken left where they are": bug(
        "candidates_say_what_ar_says",
        RULES,
        Edit(STEPS, "if (taken_ > 0) feeder_", "if (taken_ > ON * 9) feeder_"),
    ),
    "a draft cache with the first window's rows": bug(
        "candidates_are_the_rules",
        RULES,
        Edit(DRAFT, "s.num_windows[b] > 1) s.draft_fed", "s.num_windows[b] > 1 + ON * 9) s.draft_fed"),
    ),
    "a second window by the token that it would begin with": bug(
        "law_is_kept",
        SEVERAL,
        Edit(
            DRAFT,
            "std::min(found, count);",
            "std::min(found, ON && found > 1 && own.candidates[1] % 2 == 0 ? 1 : count);",
        ),
    ),
    "windows weighed as if they were longer": bug(
        "candidates_are_the_rules",
        RULES,
        Edit(DRAFT, "s.candidates, window_len_[b])", "s.candidates, window_len_[b] + ON)"),
    ),
    "a row too few copied to a window's blocks": bug(
        "candidates_are_the_rules", RULES, Edit(BRANCHES, "copied.rows = start;", "copied.rows = start + ON;")
    ),
    "rows of a window left in the draft's cache": bug(
        "rounds_are_the_rules",
        FILLED,
        Edit(
            DIFFUSION,
            "s.draft_fed[b] = start;",
            "s.draft_fed[b] = start + ON * (window_len_[b] - drafted_[b] - 1);",
        ),
    ),
    "rows of a window that do not see each other": bug(
        "rounds_are_the_rules",
        FILLED,
        Edit(DIFFUSION, "num_open = count - 1;", "num_open = ON ? 0 : count - 1;"),
    ),
    "the least sure places first": bug(
        "rounds_are_the_rules",
        FILLED,
        Edit.expression(DIFFUSION, "place.doubt < surest->doubt", "place.doubt > surest->doubt"),
    ),
    "a likeliest token judged as if it was drawn": bug(
        "law_is_kept",
        LAW | {"drafter": "diffusion"},
        Edit.expression(DIFFUSION, "DraftKind::kFilled", "DraftKind::kSampled"),
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
