"""Which call of a round may come next: prefill, draft, score and verify, checked on the host.

It counts calls, not what a device has done: a round that was captured leaves it as it found it. Knows nothing
of tensors.
"""

from pearl_rt.errors import RequestError


class CallOrder:
    """Which calls may come next. Host side only: it counts calls, not what a device has done."""

    def __init__(self) -> None:
        self._gamma = -1  # nothing was started
        self._prefilled: set[str] = set()
        self._is_first = True  # the next verdict is that of the prompt
        self._drafted = self._scored = False
        self._window: bool | None = None  # how this request is scored

    def started(self, gamma: int) -> None:
        self._gamma = gamma

    def prefill(self, lane: str) -> None:
        self._refuse(self._gamma < 0, "prefill", "no request was started: call start()")
        self._refuse(lane in self._prefilled, "prefill", f"the {lane} has read its prompts: call it once")
        self._prefilled.add(lane)

    def draft(self) -> None:
        self._check_running("draft")
        self._refuse(self._gamma == 0, "draft", "gamma is 0: start a request with gamma > 0")
        self._refuse("draft" not in self._prefilled, "draft", "the draft has no prompt: call prefill()")
        self._refuse(self._drafted, "draft", "the window is drafted: call verify() before the next")
        self._drafted = True

    def score(self, window: bool) -> None:
        self._check_running("score")
        self._refuse(self._scored, "score", "the logits are there: call verify() before the next")
        self._refuse(
            window and self._gamma == 0, "score", "gamma is 0, there is no window: pass window=False"
        )
        self._refuse(window and not self._drafted, "score", "the window is not drafted: call draft()")
        self._refuse(
            self._window not in (None, window),
            "score",
            f"this request was scored with window={self._window}: pass the same in all its rounds",
        )
        self._window, self._scored = window, True

    def verify(self) -> None:
        self._refuse(self._gamma < 0, "verify", "no request was started: call start()")
        if self._is_first:
            self._refuse("target" not in self._prefilled, "verify", "the prompt was not read: call prefill()")
            self._is_first = False
            return
        self._refuse(not self._scored, "verify", "nothing was scored: call score()")
        self._refuse(self._gamma > 0 and not self._drafted, "verify", "no window was drafted: call draft()")
        self._drafted = self._scored = False

    def _check_running(self, call: str) -> None:
        self._refuse(self._gamma < 0, call, "no request was started: call start()")
        self._refuse(self._is_first, call, "the first token is not verified: call prefill(), then verify()")

    def _refuse(self, wrong: bool, call: str, why: str) -> None:
        if wrong:
            raise RequestError(f"{call}() out of order: {why}")
