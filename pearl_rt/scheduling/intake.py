"""What callers of an engine ask for, checked: each answer that is wanted becomes a job.

Knows the engine's options, its models' limits and its tokenizer; not lanes, and not the scheduler.
"""

from collections.abc import Sequence

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.errors import RequestError
from pearl_rt.grammar.forms import Forms
from pearl_rt.scheduling.engine_lock import EngineLock
from pearl_rt.scheduling.job import Job
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.strategy.program_choice import Capabilities, ProgramChoice
from pearl_rt.types.request import Request, check_params, prompt_ids, prompt_list
from pearl_rt.types.sampling_params import SamplingParams, checked
from pearl_rt.types.values import rule_of

Options = tuple[str | None, int | None, str | None, str | None]  # strategy, gamma, placement, judge of a call


class Intake:
    """Makes jobs. Raises RequestError for what cannot run, EngineClosedError once the engine is closed."""

    def __init__(
        self,
        engine_lock: EngineLock,
        *,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        choice: ProgramChoice,
        capabilities: Capabilities,
        judge: str,
        kv_pool: KvPool,
    ) -> None:
        """config, tokenizer: the target's. choice, judge: the engine's own, where a call makes none."""
        self._engine_lock = engine_lock
        self._eos_ids = config.eos_token_ids
        self._vocab_size = config.vocab_size
        self._tokenizer = tokenizer
        self._choice, self._capabilities, self._judge = choice, capabilities, judge
        self._kv_pool = kv_pool
        self._forms = Forms(tokenizer, config.vocab_size, config.eos_token_ids)

    def jobs(
        self, prompts: object, params: SamplingParams | Sequence[SamplingParams] | None, options: Options
    ) -> list[Job]:
        """params.n jobs for each of the prompts, in order. params: for all, or a list with one for each."""
        listed = prompt_list(prompts)
        given = list(params) if isinstance(params, (list, tuple)) else [params] * len(listed)
        if len(given) != len(listed):
            raise RequestError(
                f"there are {len(listed)} prompts and {len(given)} SamplingParams: pass one for all, or a "
                "list with one for each"
            )
        asked = [(prompt, checked(each)) for prompt, each in zip(listed, given, strict=True)]
        samples = [(prompt, each, index) for prompt, each in asked for index in range(each.n)]
        return [self._job(prompt, each, *options, index=index) for prompt, each, index in samples]

    def job(
        self, name: str, instead: str, prompt: object, params: SamplingParams | None, options: Options
    ) -> Job:
        """The job of a call that takes one prompt and gives one answer."""
        params = checked(params)
        listed = prompt_list(prompt)
        if len(listed) != 1:
            raise RequestError(f"{name} takes one prompt, got {len(listed)}: call {instead} for several")
        if params.n > 1:
            raise RequestError(f"{name} gives one answer, n is {params.n}: pass n=1, or call generate()")
        return self._job(listed[0], params, *options)

    def _job(
        self,
        prompt: object,
        params: SamplingParams,
        strategy: str | None,
        gamma: int | None,
        placement: str | None,
        judge: str | None,
        index: int = 0,
    ) -> Job:
        self._engine_lock.check_open()
        choice = self._capabilities.narrowed(
            self._choice, strategy, gamma, placement, params.draft_stop, RequestError
        )
        judge = self._judge if judge is None else rule_of(EngineOptions, "judge")("judge", judge)
        check_params(params, self._tokenizer, self._vocab_size)
        length = self._kv_pool.max_model_len
        ids = prompt_ids(prompt, self._tokenizer, self._vocab_size, length)
        params = params.sample(index)
        if params.prompt_logprobs is not None and not self._capabilities.scores_prompts:
            raise RequestError(
                "prompt_logprobs are reported by the CPU only: leave them out, or build the engine with "
                "device='cpu'"
            )
        asked = params.structured_outputs
        if asked is not None and not self._capabilities.masks_tokens:
            several = self._capabilities.candidates
            raise RequestError(
                "structured_outputs run on the CPU only: leave them out, or build the engine with "
                "device='cpu'"
                if several == 1
                else f"structured_outputs are for one window of a sequence, and candidates is {several}: "
                "leave them out, or build the engine with candidates=1"
            )
        form = None if asked is None else self._forms.form(asked)
        request = Request.of(ids, 0, params, self._eos_ids, length, form)
        self._kv_pool.check(request)
        text = prompt if isinstance(prompt, str) else None
        return Job(text, request, params, choice, judge, tokenizer=self._tokenizer, index=index)
