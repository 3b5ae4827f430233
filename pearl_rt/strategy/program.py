"""Strategies as data: what each lane does, op by op, and which events order the lanes.

A program is two short lists per lane, `prologue` (once) and `body` (every round). The coordinator (C++) runs
it for as many rounds as the request takes, with no Python in between. It knows nothing of models, devices or
how an op works; the lanes that run it know nothing of strategies.

Ops: `prefill` (whole prompt, logits of its last token), `prefill context` (all but the last token), `first`
(commit the first token), `draft`, `score` (pending tokens and one row more), `score window` (the new window
too), `verify`, `fetch window`, `fetch verdict`, `record e`, `wait e`. A lane's k-th wait for an event needs
its k-th record. Lane 0 is the target's.

Where the lanes have a memory each (placement "devices": two GPUs, or a draft on the host beside a target on a
GPU), the reader fetches behind its wait: the target the window, the draft the verdict.

`sd` and `pearl` differ in where the target waits for `d`, the draft's window (arXiv 2408.11850, section 3).
"""

from dataclasses import dataclass

from pearl_rt.errors import ConfigError
from pearl_rt.types.values import choice

STRATEGIES = ("ar", "sd", "pearl")
CORE_PLACEMENTS = ("shared", "split")  # where both lanes share a memory: all that there is on CPU cores
PLACEMENTS = (*CORE_PLACEMENTS, "devices")
JUDGES = ("rejection", "coupled")
MAX_GAMMA = 16
MAX_CANDIDATES = 8  # windows of a sequence
LANES = ("target", "draft")

BODIES: dict[str, dict[str, str]] = {
    "ar": {"target": "score; verify"},
    "sd": {
        "target": "wait d; score window; verify; record v",
        "draft": "draft; record d; wait v",
    },
    "pearl": {
        "target": "score; wait d; verify; record v",
        "draft": "draft; record d; wait v",
    },
}

# On two devices both prefill at once; on one, the draft's prefill must not delay the first token. Either way
# the draft begins behind the first token, which is the target's alone.
PROLOGUES: dict[str, dict[str, str]] = {
    "shared": {"target": "prefill; first; record v", "draft": "wait v; prefill context"},
    "split": {"target": "prefill; first; record v", "draft": "prefill context; wait v"},
    "devices": {"target": "prefill; first; record v", "draft": "prefill context; wait v"},
}

ORDERING = ("record", "wait")
# What a wait for an event is followed by where each lane has a memory of its own.
FETCHES = {"d": "fetch window", "v": "fetch verdict"}

# What an op reads and writes of its lane's memory: conflicts must be ordered by events.
READS = {
    "prefill": {"prompt"},
    "prefill context": {"prompt"},
    "first": {"token_ids", "target_logits"},
    "draft": {"token_ids"},
    "score": {"token_ids"},
    "score window": {"token_ids", "draft_token_ids"},
    "verify": {"token_ids", "target_logits", "draft_token_ids"},
    "fetch window": set[str](),
    "fetch verdict": set[str](),
}
WRITES = {
    "prefill": {"target_logits"},
    "prefill context": set[str](),
    "first": {"token_ids"},
    "draft": {"draft_token_ids"},
    "score": {"target_logits"},
    "score window": {"target_logits"},
    "verify": {"token_ids"},
    "fetch window": {"draft_token_ids"},
    "fetch verdict": {"token_ids"},
}
# What a fetch reads of the other lane's memory.
FETCHED = {"fetch window": {"draft_token_ids"}, "fetch verdict": {"token_ids"}}


@dataclass(frozen=True)
class Op:
    """One step of a lane: `record` and `wait` name an event, the others do not."""

    kind: str
    event: str = ""

    @classmethod
    def parse(cls, text: str) -> "Op":
        """`"wait d"` -> Op("wait", "d"); `"score window"` -> Op("score window")."""
        kind, _, event = text.partition(" ")
        op = cls(kind, event.strip()) if kind in ORDERING else cls(text)
        if (op.kind in ORDERING) != bool(op.event) or op.kind not in (*ORDERING, *READS):
            raise ConfigError(
                f"{text!r} is not an op; known are {', '.join(READS)}, record EVENT, wait EVENT"
            )
        return op


def parse_ops(text: str) -> tuple[Op, ...]:
    """`"score; wait d"` -> its ops."""
    return tuple(Op.parse(part.strip()) for part in text.split(";") if part.strip())


@dataclass(frozen=True)
class LaneProgram:
    """The lists of one lane."""

    prologue: tuple[Op, ...]
    body: tuple[Op, ...]

    def ops(self, rounds: int) -> tuple[tuple[int, Op], ...]:
        """(round, op) in order, the prologue as round 0."""
        once = tuple((0, op) for op in self.prologue)
        return once + tuple((r, op) for r in range(1, rounds + 1) for op in self.body)


@dataclass(frozen=True)
class Program:
    """The lists of all lanes, target first. Built by `program()`; checked by `check()`."""

    name: str
    lanes: tuple[LaneProgram, ...]
    memories: int = 1  # 2: one for each lane, with fetches between them

    @property
    def events(self) -> tuple[str, ...]:
        """The names of its events, sorted."""
        ops = (op for lane in self.lanes for op in (*lane.prologue, *lane.body))
        return tuple(sorted({op.event for op in ops if op.event}))

    def native(self) -> tuple[int, list[tuple[list[tuple[str, int]], list[tuple[str, int]]]]]:
        """What `_C.Coordinator.start` reads: (number of events, per lane two lists of (op, event or -1))."""
        index = {name: i for i, name in enumerate(self.events)}
        index[""] = -1

        def rows(ops: tuple[Op, ...]) -> list[tuple[str, int]]:
            return [(op.kind, index[op.event]) for op in ops]

        return len(self.events), [(rows(lane.prologue), rows(lane.body)) for lane in self.lanes]


def _with_fetches(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The same ops, with a fetch behind each wait."""
    fetched = ((op, Op(FETCHES[op.event])) if op.kind == "wait" else (op,) for op in ops)
    return tuple(op for group in fetched for op in group)


def program(strategy: str, placement: str = "shared") -> Program:
    """The program of a strategy. placement: "shared" (one device), "split" (draft and target on two that
    share a memory) or "devices" (on two with a memory each)."""
    choice("strategy", strategy, STRATEGIES, ConfigError)
    choice("placement", placement, PLACEMENTS, ConfigError)
    body, prologue = BODIES[strategy], PROLOGUES[placement]
    if strategy == "ar":
        prologue = {"target": "prefill; first"}

    def ops(text: str) -> tuple[Op, ...]:
        return _with_fetches(parse_ops(text)) if placement == "devices" else parse_ops(text)

    lanes = tuple(LaneProgram(ops(prologue[name]), ops(body[name])) for name in LANES if name in body)
    return Program(f"{strategy}/{placement}", lanes, memories=2 if placement == "devices" else 1)


def check(candidate: Program, rounds: int = 4) -> None:
    """Refuses a program that can deadlock, race or read what is stale: ConfigError names the op, or two ops
    and what they share.

    Waits only count, so one order of execution decides for all: if it ends, none can deadlock. Races are
    found with vector clocks: of two ops of different lanes, one of which writes what the other touches, one
    must be known to have ended before the other begins, through a chain of record and wait. With two memories
    the same must hold as if they were one, for fetches between the two, and what an op reads must have been
    fetched since it was written.
    """
    clocks = [[0] * len(candidate.lanes) for _ in candidate.lanes]
    records: dict[str, list[list[int]]] = {name: [] for name in candidate.events}
    waits = [dict.fromkeys(candidate.events, 0) for _ in candidate.lanes]
    todo = [list(lane.ops(rounds)) for lane in candidate.lanes]
    done: list[_Done] = []
    moved = True
    while moved:
        moved = False
        for lane, ops in enumerate(todo):
            while ops:
                at, op = ops[0]
                if op.kind == "wait":
                    seen = waits[lane][op.event]
                    if len(records[op.event]) <= seen:
                        break
                    waits[lane][op.event] += 1
                    clocks[lane] = [
                        max(pair) for pair in zip(clocks[lane], records[op.event][seen], strict=True)
                    ]
                elif op.kind == "record":
                    records[op.event].append(list(clocks[lane]))
                else:
                    done.append(_Done(lane, at, op, list(clocks[lane])))
                    clocks[lane][lane] += 1
                del ops[0]
                moved = True
    for lane, ops in enumerate(todo):
        if ops:
            at, op = ops[0]
            raise ConfigError(
                f"{candidate.name} deadlocks: in round {at} the {LANES[lane]} lane waits for {op.event!r}, "
                "which no lane records"
            )
    _check_races(candidate, done, 1)
    if candidate.memories > 1:
        _check_races(candidate, done, candidate.memories)
        _check_versions(candidate, done)


@dataclass(frozen=True)
class _Done:
    """An op in the order of execution. Clock entry i: how many ops of lane i are known to have ended when it
    begins."""

    lane: int
    round: int
    op: Op
    clock: list[int]

    def reads(self, memories: int) -> set[tuple[int, str]]:
        """(memory, field)."""
        own = {(self.lane % memories, name) for name in READS[self.op.kind]}
        fetched = {((1 - self.lane) % memories, name) for name in FETCHED.get(self.op.kind, ())}
        return own | fetched

    def writes(self, memories: int) -> set[tuple[int, str]]:
        """(memory, field). In one memory a fetch would write what is there already."""
        if memories == 1 and self.op.kind in FETCHED:
            return set()
        return {(self.lane % memories, name) for name in WRITES[self.op.kind]}

    def __str__(self) -> str:
        return f"{self.op.kind!r} of the {LANES[self.lane]} lane (round {self.round})"


def _check_races(candidate: Program, done: list[_Done], memories: int) -> None:
    for one in done:
        for other in done:
            if other.lane <= one.lane:
                continue
            mine, theirs = one.writes(memories), other.writes(memories)
            shared = (mine & (other.reads(memories) | theirs)) | (one.reads(memories) & theirs)
            ordered = (
                other.clock[one.lane] > one.clock[one.lane] or one.clock[other.lane] > other.clock[other.lane]
            )
            if shared and not ordered:
                names = ", ".join(sorted({name for _, name in shared}))
                raise ConfigError(
                    f"{candidate.name} races: {one} and {other} share {names} and no event orders them"
                )


def _check_versions(candidate: Program, done: list[_Done]) -> None:
    """There is no race, so one order shows which version each op reads; the op that writes counts them."""
    made = {"token_ids": 0, "draft_token_ids": 0}  # how often, by first and verify, and by draft
    held = [dict(made), dict(made)]  # the version in each memory
    for each in done:
        kind, own = each.op.kind, held[each.lane]
        if kind in FETCHED:
            own.update({name: held[1 - each.lane][name] for name in FETCHED[kind]})
            continue
        for name in sorted(READS[kind] & set(made)):
            if own[name] != made[name]:
                raise ConfigError(
                    f"{candidate.name} reads what is stale: {each} reads {name}, which the other lane has "
                    "written since it was fetched"
                )
        for name in WRITES[kind] & set(made):
            made[name] += 1
            own[name] = made[name]
