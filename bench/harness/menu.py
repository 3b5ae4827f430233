"""Which programs are measured, and how much work fits a budget. Knows programs by name only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.harness.measure import Program, Workload

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
SWEEP_PROMPTS, SWEEP_TOKENS = 2, 48
MIN_PROMPTS, MIN_TOKENS = 3, 32


@dataclass(frozen=True)
class Menu:
    """The programs of one run."""

    plain: tuple[Program, ...]  # ar, which has no window
    swept: tuple[Program, ...]  # kinds whose gamma is swept
    auto: Program
    follow: tuple[str, ...] = ()  # placements where the swept kinds run too, with the gamma that was found
    has_both: bool = True  # at temperature > 0 the best sd and pearl run judged by rejection too

    @property
    def num_programs(self) -> int:
        return len(self.plain) + len(self.swept) * (1 + len(self.follow)) + 1

    @property
    def judge(self) -> str:
        return self.auto.judge

    def programs(self, best: Sequence[Program]) -> list[Program]:
        """All of them, once the best gamma of each swept kind is known."""
        follow = [replace(p, placement=place) for place in self.follow for p in best]
        return [*self.plain, *best, *follow, self.auto]

    def judged(self, judge: str) -> Menu:
        """The same, all judged by "coupled" or by "rejection", and by nothing else."""
        plain, swept = (tuple(replace(p, judge=judge) for p in own) for own in (self.plain, self.swept))
        return Menu(plain, swept, replace(self.auto, judge=judge), self.follow, has_both=False)


def cpu_menu(*, split: bool = True, pearl_shared: bool = False) -> Menu:
    """split: there are two cores or more."""
    plain = [Program("ar", "shared"), *([Program("ar", "split")] if split else [])]
    swept = [Program("sd", "shared")]
    if split:
        swept += [Program("sd", "split"), Program("pearl", "split")]
    if pearl_shared or not split:
        swept.append(Program("pearl", "shared"))
    return Menu(tuple(plain), tuple(swept), Program("auto", "auto"))


def lookup_menu() -> Menu:
    """Without a draft model all cores are the target's. pearl has no wait to hide then."""
    swept = Program("sd", "shared"), Program("pearl", "shared")
    return Menu((Program("ar", "shared"),), swept, Program("auto", "auto"))


def device_menu(forms: Sequence[str]) -> Menu:
    """Forms of launching take the place of placements; gamma is swept in the first."""
    first, *others = forms
    plain = tuple(Program("ar", form) for form in forms)
    return Menu(plain, (Program("sd", first), Program("pearl", first)), Program("auto", first), tuple(others))


def menus(menu: Menu, temperatures: Sequence[float], judge: str) -> dict[float, Menu]:
    """What is measured at each temperature. judge: of all rows where tokens are sampled, or "both"."""
    if judge == "both":
        return dict.fromkeys(temperatures, menu)
    return {at: menu.judged(judge) if at > 0 else menu for at in temperatures}


def short_part(workload: Workload) -> Workload:
    """What gamma is swept on."""
    return workload.part(max(SWEEP_PROMPTS, workload.batch), SWEEP_TOKENS)


def num_runs(
    menu: Menu,
    gammas: Sequence[int],
    workload: Workload,
    repeats: int,
    *,
    num_peers: int = 0,
) -> int:
    """Calls of progress that one run makes: the sweep, then all its programs over all batches."""
    swept = len(short_part(workload).firsts()) if len(gammas) > 1 else 0
    more = 2 * menu.has_both if workload.temperature > 0 else num_peers
    whole = (menu.num_programs + more) * len(workload.firsts()) * repeats
    return len(menu.swept) * len(gammas) * swept + whole


def fit_workload(
    workload: Workload,
    seconds_per_token: float,
    budget: float,
    num_runs: int,
    num_gammas: int,
    *,
    seconds_per_prompt: float = 0.0,
    num_kinds: int = 3,
    num_programs: int = 8,
) -> Workload:
    """Fewer prompts, then fewer tokens, if the whole would take longer than the budget; in batches, fewer
    of these: as if a batch took no longer than one prompt. seconds_per_prompt: of prefill. num_kinds: whose
    gamma is swept.
    """
    least = max(MIN_PROMPTS, workload.batch)

    def cost(prompts: int, tokens: int) -> float:
        part = workload.part(prompts, tokens)
        swept = num_kinds * num_gammas * len(short_part(part).firsts())
        whole = num_programs * len(part.firsts())
        decoded = swept * min(tokens, SWEEP_TOKENS) + whole * tokens
        return num_runs * (seconds_per_token * decoded + seconds_per_prompt * (swept + whole))

    prompts, tokens = len(workload.prompts), workload.max_tokens
    while cost(prompts, tokens) > budget and (prompts > least or tokens > MIN_TOKENS):
        if prompts > least:
            prompts = max(prompts - workload.batch, least)
        else:
            tokens = max(MIN_TOKENS, tokens * 3 // 4)
    return workload.part(prompts, tokens)
