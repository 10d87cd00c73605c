"""One session of a run: its model and state, the sampler and reward of a step, and Ctrl-C."""

import math
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rftkit.decoding import decode, end_tokens
from rftkit.environment import gathered, process, set_seed, together
from rftkit.evaluation import pattern_shares, rounded
from rftkit.files import UserError, plural, read_json, write_json
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.graders.rewards import GraderFailure, reward_function
from rftkit.loading import check_weights, hub_place, is_embedded, model_folder
from rftkit.packing import reason_to_copy
from rftkit.policy import LocalPolicy, load_policy, merged_adapter
from rftkit.records import Sample, SamplingConfig
from rftkit.signal.checks import check_template
from rftkit.task import Task
from rftkit.training import store, watchdogs
from rftkit.training.config import RunConfig, config_base
from rftkit.training.plan import Plan, plan_run
from rftkit.training.watchdogs import HeldOut, Progress, TrainingStopped, Watchdogs

TEMPLATE_ROWS = 8  # whose prompts are read with the first batch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the run can be resumed."""


@contextmanager
def interrupts_heard(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM sets the event: the run ends after the step. A second one stops at once,
    but not one of several processes: to these the launcher passes on what the terminal has sent."""
    asked, alone = threading.Event(), process()[1] == 1

    def ask(number: int, frame: Any) -> None:
        if asked.is_set() and alone:
            raise Interrupted("interrupted at once; the last checkpoint stands: start it again")
        asked.set()
        say(f"stopping after this step, with a checkpoint{' (once more: at once)' * alone}")

    main = threading.current_thread() is threading.main_thread()  # signals reach no other
    signals = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Session:
    """A run may take several sessions: each resumes where the newest checkpoint left it."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        task: Task,
        rows: list[dict[str, Any]],
        held_out: list[dict[str, Any]],
        observers: Sequence[store.Observer],
        interrupted: threading.Event,
        resume: bool,
    ):
        set_seed(config.seed)
        self.out, self.task, self.rows, self.interrupted = out, task, rows, interrupted
        with together():
            self.policy, self.notes = load_trainable(config), []
        tooled = [number for number, row in enumerate(rows, 1) if row.get("tools")]
        if tooled and config.method == "grpo" and self.policy.engine == "unsloth":
            fault = "has tools, which Unsloth's sampling is not given"
            raise UserError(f'row {tooled[0]}: {fault}: set engine to "transformers"')
        if not resume and process()[0] == 0:
            self.plan, self.notes = plan_run(config, rows, held_out, self.policy)
            if config.method == "grpo":
                copies = reason_to_copy(self.policy.model)
                self.plan.shared_prompts = not copies
                if copies:
                    self.plan.reasons.append(f"each completion has its own prompt: {copies}")
            self.plan.threads, reason = quickest_threads(self.policy, config_base(config))
            self.plan.reasons += [reason] if reason else []
            write_json(out / "plan.json", vars(self.plan))
        gathered(None)
        # Resumed with another batch size it would add its sums in another order.
        self.plan = Plan(**read_json(out / "plan.json"))
        limit = {"max_completion_tokens": self.plan.max_completion_tokens}
        self.config = config = config.model_copy(update=limit)
        self.resume_from = store.newest_checkpoint(out) if resume else None
        state = read_json(self.resume_from / "run_state.json") if self.resume_from else {}
        limits = {"watchdog_steps": config.watchdog_steps, "entropy_floor": config.entropy_floor}
        self.watchdogs = Watchdogs(**state.get("watchdogs", limits))
        self.progress = Progress(**state.get("progress", {}))
        self.held_out = HeldOut(task, held_out, config, out, self.progress)
        self.recorder = store.Recorder(out, observers, state)
        self.stopped = state.get("stopped")  # the alarm that ended the run, if one did
        self.clock = Counter()  # seconds of this step, by what took them

    @property
    def step(self) -> int:
        """The last whole one."""
        return len(self.recorder.log)

    @property
    def seed(self) -> int:
        """Of the next step, on which alone it depends: a resumed run draws what it would have."""
        return self.config.seed * 100_003 + self.step + 1

    @property
    def no_longer_improves(self) -> bool:
        return 0 < self.config.patience <= self.progress.since_best

    @property
    def is_over(self) -> bool:
        return self.step >= self.plan.steps or self.no_longer_improves or bool(self.stopped)

    def save(self, trainer: Any) -> None:
        """A checkpoint of the last whole step; what only older ones needed goes."""
        if process()[0] > 0:
            return
        state = {
            "step": self.step,
            "seconds": self.recorder.seconds,
            "positions": self.recorder.positions(),
            "progress": asdict(self.progress),
            "watchdogs": asdict(self.watchdogs),
            "stopped": self.stopped,
        }
        store.write_checkpoint(self.out, trainer, state)
        self.held_out.remove_others()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to the step's clock."""
        began = time.perf_counter()
        yield
        self.clock[name] += time.perf_counter() - began


def quickest_threads(policy: LocalPolicy, base: str) -> tuple[int | None, str]:
    """(threads, the reason), by a pass like one of sampling: too many threads wait for each other,
    on a busy machine any two. None where OMP_NUM_THREADS is set, and for the embedded models, whose
    numbers must not depend on how busy a machine is."""
    import torch

    if is_embedded(base) or "OMP_NUM_THREADS" in os.environ or policy.model.device.type != "cpu":
        return None, ""
    most, seconds = torch.get_num_threads(), {}
    for threads in 3 * sorted({most, *(2**i for i in range(most.bit_length()))}):
        torch.set_num_threads(threads)
        began = time.perf_counter()
        with torch.inference_mode():
            policy.model(input_ids=torch.ones((32, 4), dtype=torch.long))
        seconds[threads] = min(time.perf_counter() - began, seconds.get(threads, math.inf))
    best = min(seconds, key=seconds.get)
    measured = ", ".join(f"{s:.2f} s with {n}" for n, s in seconds.items())
    return best, f"{plural(best, 'thread')}: a pass took {measured}"


def load_trainable(config: RunConfig) -> LocalPolicy:
    """The config's base with an adapter to train."""
    engine = "transformers" if config.vllm_server else config.engine  # Unsloth draws by itself
    policy = load_policy(config.model, engine, settings=config.to_json())
    policy.model = with_lora(policy.model, config, policy.engine)
    # A base that resolves from anywhere: an absolute path, or a hub name and its revision.
    lora = policy.model.peft_config["default"]
    base, _ = hub_place(config_base(config)).values()
    lora.base_model_name_or_path = os.path.abspath(base) if os.path.isdir(base) else base
    lora.revision = getattr(policy.model.config, "_commit_hash", None)
    return policy


def with_lora(model: Any, config: RunConfig, engine: str) -> Any:
    """The model with a fresh LoRA on every linear layer, or with the one of init_adapter."""
    start = starting_adapter(config) if config.init_adapter else None
    rank = {"r": config.lora_rank, "lora_alpha": config.lora_rank}
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        adapted = FastLanguageModel.get_peft_model(
            model, **rank, target_modules=targets, random_state=config.seed
        )
        if start:
            store.load_adapter_weights(adapted, Path(start))
        return adapted
    from peft import LoraConfig, PeftModel, get_peft_model

    if start:
        return PeftModel.from_pretrained(model, start, is_trainable=True)
    return get_peft_model(
        model, LoraConfig(**rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def starting_adapter(config: RunConfig) -> str:
    """Where init_adapter's weights are: in an adapter folder or a run folder."""
    place = config.init_adapter
    base, adapter = model_folder(place)
    if adapter is None:
        raise UserError(f"init_adapter: {place} has no adapter, expected an adapter or run folder")
    check_weights(adapter)
    rank = read_json(Path(adapter) / "adapter_config.json").get("r")
    if rank != config.lora_rank:
        raise UserError(f"init_adapter: {place} has rank {rank}: set lora_rank to {rank}")
    bases = base, config_base(config)
    if len({os.path.realpath(hub_place(b)["pretrained_model_name_or_path"]) for b in bases}) > 1:
        raise UserError(f"init_adapter: {place} fits the base {base}, expected {config.model}")
    return adapter


class StepReward:
    """The reward function that TRL calls once a step: it draws the completions, checks the first
    batch, and keeps the step's graded samples. A truncated answer scores 0. Each of several
    processes has whole groups, and draws for them what one process would."""

    def __init__(self, session: Session):
        self.session, policy = session, session.policy
        self.samples: list[Sample] = []
        self.prompt_ids: list[list[int]] = []  # of the completions just drawn
        self.checked = session.step > 0
        self.ends = end_tokens(policy.model, policy.tokenizer)
        self.reward = reward_function(
            session.task.grader, item_column="item", observer=self.keep, end_token_ids=self.ends
        )
        self.__name__ = self.reward.__name__

    def draw(self, prompts: list, trainer: Any) -> dict[str, Any]:
        """The policy's sampler as TRL's `rollout_func`: several times quicker for a tiny model,
        whose time goes into Python between two tokens."""
        session, policy, config = self.session, self.session.policy, self.session.config
        group = config.answers_per_prompt
        ids = policy.encode(prompts[::group])
        self.prompt_ids = [i for i in ids for _ in range(group)]
        if config.vllm_server:  # TRL has sent it the weights of this step
            with session.timed("sampling"):
                drawn = trainer.vllm_generation.generate(self.prompt_ids, None, group)
            return dict(zip(("prompt_ids", "completion_ids"), drawn)) | {
                "logprobs": [[first for first, *_ in tokens] for tokens in drawn[2]]
            }
        limit = config.max_completion_tokens
        settings = SamplingConfig(config.temperature, max_new_tokens=limit, seed=session.seed)
        width, drawn = policy.prompts_at_once(ids, group, settings), []
        policy.model.eval()
        with session.timed("sampling"), merged_adapter(policy.model) as model:
            for start in range(0, len(ids), width):
                some = ids[start : start + width]
                place = process()[0] * len(ids) + start  # in the whole step
                numbers = range(place, place + len(some))
                drawn += decode(model, policy.tokenizer, some, group, settings, numbers)
        policy.model.train()
        completion_ids = [tokens for tokens, _ in drawn]
        return {"prompt_ids": self.prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def __call__(self, prompts, completions, **columns) -> list[float | None]:
        policy, ids = self.session.policy, columns["completion_ids"]
        texts = [policy.read(policy.render(p), tokens) for p, tokens in zip(prompts, ids)]
        failure, rewards = "", []
        try:
            with self.session.timed("grading"):
                rewards = self.reward(texts, **columns)
        except GraderFailure as error:  # its batch is kept, too
            failure = str(error)
        self.complete_samples(prompts, **columns)
        shares, failures = zip(*gathered((self.samples, failure)))
        self.samples = [sample for share in shares for sample in share]
        if not self.checked:
            self.checked = True
            self.check_first_batch(prompts, columns["completion_ids"])
        if failure := "; ".join(filter(None, failures)):
            step, out = self.session.step + 1, self.session.out
            batch = watchdogs.save_batch(out, step, "grader failed", self.samples)
            told = f"step {step}: {failure}; its batch stands in {batch}: fix it and start again"
            raise TrainingStopped(told)
        return rewards

    def keep(self, samples: list, grades: list) -> None:
        """Called by the grader's reward function with the batch it graded."""
        self.samples = samples
        for sample, grade in zip(samples, grades):
            sample.model, sample.errors = "policy", grade.errors
            sample.grade, sample.sub_grades = grade.reward, dict(grade.sub_rewards)
        failed = [f for grade in grades for f in grade.faults if f.field == PROGRAM_FAILED]
        if failed and all(PROGRAM_FAILED in grade.errors for grade in grades):
            # A batch of zeros teaches nothing and costs a step.
            raise GraderFailure(self.__name__, len(grades), len(grades), [failed[0].detail])

    def complete_samples(self, prompts, completion_ids, row_id, **columns) -> None:
        """What only the run knows of a sample: its place, lengths, seed and time."""
        session, group = self.session, self.session.config.answers_per_prompt
        prompt_ids = self.prompt_ids or session.policy.encode(prompts)  # TRL draws for Unsloth
        seconds = session.clock["sampling"] / len(self.samples)  # 0 where TRL draws
        for number, sample in enumerate(self.samples):
            sample.row_id, sample.index, sample.seed = row_id[number], number % group, session.seed
            sample.prompt_tokens = len(prompt_ids[number])
            sample.completion_tokens = len(completion_ids[number])
            sample.seconds = round(seconds, 6)

    def check_first_batch(self, prompts: list, completion_ids: list) -> None:
        policy = self.session.policy
        template_faults = check_template(policy, self.session.rows[:TEMPLATE_ROWS])
        prompts, completion_ids = (sum(p, []) for p in zip(*gathered((prompts, completion_ids))))
        texts = [policy.render(prompt) for prompt in prompts]
        garbage = watchdogs.find_garbage(policy.tokenizer, texts, completion_ids, self.ends)
        if faults := template_faults + garbage:
            batch = watchdogs.save_batch(self.session.out, 1, "garbage", self.samples)
            message = f"step 1: {'; '.join(faults)}; no weight has changed, the "
            message += f"batch stands in {batch}: fix the chat template, tokenizer or limit"
            raise TrainingStopped(message)

    def summary(self) -> dict[str, Any]:
        """What the log says of the samples; group_spread is the mean std of a group's grades."""
        samples, count = self.samples, len(self.samples)
        size = self.session.config.answers_per_prompt
        groups = (samples[i : i + size] for i in range(0, count, size))
        grades = ([s.grade for s in group if s.grade is not None] for group in groups)
        stds = [statistics.pstdev(group) for group in grades if group]
        names = sorted({name for s in samples for name in s.sub_grades})
        means = {n: sum(s.sub_grades.get(n) or 0.0 for s in samples) / count for n in names}
        errors = Counter(error for s in samples for error in s.errors)
        return {
            "sub_rewards": rounded(means),
            "patterns": rounded(pattern_shares(self.session.task, [samples])),
            "group_spread": round(statistics.mean(stds), 4) if stds else 0.0,
            "errors": rounded({name: n / count for name, n in errors.items()}),
        }
