"""Which programs may run: what an engine can do, and what its options and a call leave to choose from.

Knows programs by name; not lanes, and nothing of requests but that they may ask for less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pearl_rt.errors import ConfigError
from pearl_rt.strategy.engine_options import MODEL_DRAFTERS, EngineOptions
from pearl_rt.strategy.planner import GAMMAS
from pearl_rt.strategy.program import STRATEGIES
from pearl_rt.types.draft_stop import NO_RULES
from pearl_rt.types.values import Fault, rule_of

T = TypeVar("T", str, int)


@dataclass(frozen=True)
class ProgramChoice:
    """The programs that may run: the product of these, in which ar has no window."""

    strategies: tuple[str, ...]
    placements: tuple[str, ...]
    gammas: tuple[int, ...]
    is_selective: bool = False  # the drafter drafts only what is likely to stand: gammas are limits
    looks_up: bool = False  # a lookup is in front of the model, which may be the better one to draft

    def windows(self, strategy: str) -> tuple[int, ...]:
        """Those that a program of this strategy may have from round to round; 0 is as good as ar."""
        return () if strategy == "ar" else (*((0,) if "ar" in self.strategies else ()), *self.gammas)


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do: without a drafter there is only ar, and a device has placements of its own."""

    drafter: str  # "model", "parallel", "diffusion", "self", "exit", "eagle3", "lookup" or "none"
    placements: tuple[str, ...] = ("shared",)
    refused: Mapping[str, str] = field(default_factory=dict)  # placement -> why not, and the way out
    scores_prompts: bool = False  # log-probabilities of a prompt's tokens
    masks_tokens: bool = False  # answers may have a form
    outlives_draft: bool = False  # a sequence may be longer than the draft's: the target goes on alone
    translates_ids: bool = False  # a draft may have a tokenizer of its own
    ends_windows: bool = False  # a draft model's windows may end early, by a rule
    candidates: int = 1  # windows of a sequence that are judged together
    looks_up: bool = False  # in front of a draft model

    @property
    def everything(self) -> ProgramChoice:
        """All programs that can run."""
        if self.drafter == "eagle3" or self.candidates > 1:  # a draft waits for the verdict on the last one
            return ProgramChoice(("ar", "sd"), self.placements[:1], GAMMAS, looks_up=self.looks_up)
        if self.drafter in MODEL_DRAFTERS:
            return ProgramChoice(STRATEGIES, self.placements, GAMMAS, looks_up=self.looks_up)
        if self.drafter == "lookup":  # it drafts at once: there is no wait for pearl to hide
            return ProgramChoice(("ar", "sd"), self.placements[:1], GAMMAS, is_selective=True)
        return ProgramChoice(("ar",), self.placements[:1], GAMMAS)

    def narrowed(
        self,
        choice: ProgramChoice,
        strategy: str | None,
        gamma: int | None,
        placement: str | None,
        stop: str | None,
        error: Fault = ConfigError,
    ) -> ProgramChoice:
        """`choice`, but for what a caller asks for: None leaves it, "auto" is all that can run. stop: what
        ends windows early.

        Raises `error` for what is unknown, or cannot run with this draft and device.
        """
        for name, value in (("strategy", strategy), ("gamma", gamma), ("placement", placement)):
            if value is not None:
                rule_of(EngineOptions, name)(name, value, error)
        if self.drafter == "none" and strategy in ("sd", "pearl"):
            raise error(
                f"strategy {strategy!r} needs a draft model, or draft='lookup': pass draft=..., or "
                "strategy='ar'"
            )
        if self.drafter == "eagle3" and strategy == "pearl":
            raise error(
                "strategy 'pearl' drafts while the target works, and an EAGLE-3 head drafts from what the "
                "target computed last: pass strategy='sd' or 'auto'"
            )
        if self.drafter == "eagle3" and placement not in (None, "auto", self.placements[0]):
            raise error(
                f"placement {placement!r} is for a draft that works beside its target, and an EAGLE-3 head "
                f"takes turns with it: pass placement={self.placements[0]!r} or 'auto'"
            )
        if self.candidates > 1 and (strategy == "pearl" or placement not in (None, "auto", "shared")):
            name, value = ("strategy", strategy) if strategy == "pearl" else ("placement", placement)
            raise error(
                f"{name} {value!r} is for a draft that works beside its target, and candidates "
                f"{self.candidates} are windows of which the next one must know which stood: pass "
                "strategy='sd' and placement='shared', or candidates=1"
            )
        beside = placement in ("split", "devices") and placement not in self.everything.placements
        if self.drafter not in MODEL_DRAFTERS and beside:
            raise error(f"placement {placement!r} needs a draft model: pass draft=..., or placement='shared'")
        if placement not in (None, "auto", *self.placements):
            own = ", ".join(map(repr, self.placements))
            why = f"placement {placement!r} is not one of this device: pass {own} or 'auto'"
            raise error(self.refused.get(str(placement), why))
        self._check_stop(stop, error)

        def left(asked: T | None, before: tuple[T, ...], every: tuple[T, ...]) -> tuple[T, ...]:
            return before if asked is None else every if asked == "auto" else (asked,)

        return ProgramChoice(
            left(strategy, choice.strategies, self.everything.strategies),
            left(placement, choice.placements, self.everything.placements),
            left(gamma, choice.gammas, GAMMAS),
            choice.is_selective if stop is None else stop not in NO_RULES or self.drafter == "lookup",
            choice.looks_up,
        )

    def _check_stop(self, stop: str | None, error: Fault) -> None:
        """Raises `error` for windows that cannot end early."""
        if stop in NO_RULES:
            return
        if self.drafter not in MODEL_DRAFTERS:
            own = "which ends its windows by itself" if self.drafter == "lookup" else "which drafts nothing"
            raise error(
                f"draft_stop {stop!r} ends the windows of a draft model, and the drafter is "
                f"{self.drafter!r}, {own}: pass draft=DIRECTORY or draft='self', or drop it"
            )
        if self.candidates > 1:
            raise error(
                f"draft_stop {stop!r} ends one window of a sequence, and with candidates {self.candidates} "
                "there are several, all as long: drop it, or pass candidates=1"
            )
        if self.drafter == "diffusion":
            raise error(
                f"draft_stop {stop!r} ends windows that are drafted from their front, and a draft "
                "'diffusion' fills its windows whole: drop it, or pass draft_parallel=False "
                "(--no-draft-parallel)"
            )
        if not self.ends_windows:
            raise error(
                f"draft_stop {stop!r} runs on the CPU only so far: elsewhere a window's steps are launched "
                "before its rows are known. Pass device='cpu', or drop it"
            )
