"""What only a device's clock shows of a run, with peers that ran behind it, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.rounds.expected import Share, format_shares
from bench.rounds.round_times import RoundTimes, Together, format_times, format_together
from bench.rounds.teacher_forced import TeacherForced, format_forced
from pearl_rt.types.metrics import RequestMetrics


@dataclass
class DeviceFigures:
    """By program: steps, shares of what they allow, host time."""

    planted: dict[str, Any] | None = None
    times: dict[str, RoundTimes] = field(default_factory=dict)
    together: Together | None = None
    shares: list[Share] = field(default_factory=list)
    host_us: dict[str, float] = field(default_factory=dict)
    forced: TeacherForced | None = None
    against: dict[str, dict[str, float]] = field(default_factory=dict)  # program -> peer -> times as fast
    absent: dict[str, str] = field(default_factory=dict)  # peer -> why
    runs: dict[str, list[RequestMetrics]] = field(default_factory=dict)  # timed, for traces; not in the JSON

    def to_dict(self) -> dict[str, Any]:
        return {
            "planted": self.planted,
            "times": {name: times.to_dict() for name, times in self.times.items()},
            "together": self.together.to_dict() if self.together else None,
            "shares": [share.to_dict() for share in self.shares],
            "host_us": self.host_us,
            "forced": self.forced.to_dict() if self.forced else None,
            "against": self.against,
            "absent": self.absent,
        }

    def __str__(self) -> str:
        lines = ["", "rounds on the device's clock:", format_times(self.times)]
        if self.together is not None:
            lines.append(format_together(self.together))
        if self.host_us:
            listed = ", ".join(f"{name} {value:.1f}" for name, value in self.host_us.items())
            lines.append(f"host time a round, us: {listed}")
        else:
            lines.append("host time a round: these lanes don't count it")
        lines += ["against the model of its own steps:", format_shares(self.shares)]
        if self.forced is not None:
            lines.append(format_forced("Hugging Face", self.forced))
        for program, peers in self.against.items():
            listed = ", ".join(f"{ratio:.3g}x {peer}" for peer, ratio in peers.items())
            lines.append(f"{program}: {listed}")
        return "\n".join(lines + [f"{peer}: {why}" for peer, why in self.absent.items()])
