"""What ends the windows of a draft model before gamma, as an engine or one request asks for it: a rule by
name, some with a number behind a colon. What each of them does is said by pearl_rt/reference/stops.py.
"""

from dataclasses import dataclass

from pearl_rt.errors import RequestError
from pearl_rt.types.values import Choice, Fault

NO_RULES = (None, "none", "auto")  # of all windows
FIRST_THRESHOLD = 0.4  # of AdaEDL, before it moves


@dataclass(frozen=True)
class DraftStop(Choice):
    """One of the rules, "none", or "auto": one where the planner chooses windows."""

    names: tuple[str, ...] = ("auto", "none", "adaedl", "marginal", "thompson", "confidence:P")
    pattern: str = r"(confidence|adaedl|marginal):0?\.\d*[1-9]\d*"  # a number between 0 and 1

    def __call__(self, name: str, value: object, error: Fault = RequestError) -> str | None:
        rule = super().__call__(name, value, error)
        if rule == "confidence:P":
            raise error(f"{name} 'confidence:P' wants a number for P: pass 'confidence:0.4'")
        return rule


def native(rule: str, cost: float) -> tuple[str, float]:
    """A rule as `_C.Request` takes it, with its number. cost: of a draft's step in steps of the target, for
    "marginal" without a number.
    """
    name, _, number = rule.partition(":")
    return name, float(number or {"adaedl": FIRST_THRESHOLD, "marginal": cost}.get(name, 0.0))
