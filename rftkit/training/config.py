"""RunConfig: everything that fixes a run, each field with its meaning and its default."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from rftkit.files import UserError
from rftkit.graders.grader import GraderSettings
from rftkit.policy import LocalPolicy, model_folder
from rftkit.rows import read_rows
from rftkit.task import Task, load_task, task_from_json

REPORTS = {  # report_to -> packages of which one must be installed
    "none": [],
    "tensorboard": ["tensorboard", "tensorboardX"],
    "trackio": ["trackio"],
}
# What may differ when a run goes on: none of these changes what is learned.
FREE_FIELDS = ("gate", "report_to", "save_every", "allow_weak_isolation")
# Compared as what stands there (folder.py, data_identity): a file may be named in several ways.
COMPARED_BY_CONTENT = ("task", "train_file", "validation_file", "grader", "answer_template",
                       "group_by", "patterns")  # fmt: skip
MOST = {  # beyond these a number is a slip of the pen, and would fill the memory
    "prompts_per_step": 100_000,
    "answers_per_prompt": 10_000,
    "steps": 10_000_000,
    "max_completion_tokens": 1_000_000,
    "lora_rank": 4_096,
}


@dataclass
class RunConfig:
    """Everything that fixes a run. You state prompts and answers; plan.py derives batches.

    field (unit)                   default          meaning
    model                          embedded:mini    or a folder, or a hub name
    engine                         auto             auto | transformers | unsloth
    task                           none             a task folder, or a name under datasets/
    train_file … patterns          none             instead of a task, or in place of what the task
                                                    says: the fields of task.json, and
                                                    validation_file for the held-out rows
    method                         grpo             grpo: answers are sampled and graded; sft:
                                                    completions are given
    prompts_per_step (rows)        8
    answers_per_prompt (answers)   8                the group whose scores are compared (grpo)
    steps (optimiser steps)        70               at most; sft: `epochs` may end it earlier
    learning_rate                  none             of the LoRA weights, constant after 3 steps;
                                                    none: by the model's width (plan.py says why)
    beta                           0.04             weight of the KL term that ties to the start
    temperature                    1.0              of the sampled answers
    max_completion_tokens (tokens) 64               longer answers are cut and usually score 0
    lora_rank                      4                alpha is the same, so the adapter's scale is 1
    init_adapter                   none             a folder (adapter or run) to start from
    micro_batch (answers)          none             answers a forward and backward pass; none: as
                                                    many as the memory holds. Divides the batch.
    eval_every (steps)             5                between two looks at held-out rows; 0 never
    patience (looks)               4                stop after so many without a better; 0 never
    eval_rows (rows)               240              held-out rows a look (the first of the file)
    eval_samples (answers)         2                a held-out row
    keep_start                     true             may the untrained adapter be the best?
    save_every (steps)             5                between two checkpoints: what a kill can cost
    watchdog_steps (steps)         10               so many in a row without a live group, or under
                                                    entropy_floor, stop the run; 0 never
    entropy_floor (nats a token)   0.01             below it the answers no longer differ
    completion_template            none             sft: what to say; answer_template by default
    epochs (passes)                0                sft: over the rows; 0 counts steps alone
    gate                           on               on | off: the signal gate before step 1 (grpo)
    report_to                      none             none | tensorboard (RUN/tensorboard) | trackio;
                                                    the package is yours to install
    allow_weak_isolation           false            run python graders where this machine cannot
                                                    keep them from files and network: only texts
                                                    that you have read
    seed                           0                of everything that is drawn
    """

    model: str = "embedded:mini"
    engine: str = "auto"
    task: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    grader: Any = None
    answer_template: str | None = None
    group_by: str | None = None
    patterns: dict[str, str] = field(default_factory=dict)
    method: str = "grpo"
    prompts_per_step: int = 8
    answers_per_prompt: int = 8
    steps: int = 70
    learning_rate: float | None = None
    beta: float = 0.04
    temperature: float = 1.0
    max_completion_tokens: int = 64
    lora_rank: int = 4
    init_adapter: str | None = None
    micro_batch: int | None = None
    eval_every: int = 5
    patience: int = 4
    eval_rows: int = 240
    eval_samples: int = 2
    keep_start: bool = True
    save_every: int = 5
    watchdog_steps: int = 10
    entropy_floor: float = 0.01
    completion_template: str | None = None
    epochs: int = 0
    gate: str = "on"
    report_to: str = "none"
    allow_weak_isolation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.answer_template, dict | list):  # JSON, as in a task.json
            self.answer_template = json.dumps(self.answer_template, ensure_ascii=False)

    def problems(self) -> list[str]:
        """Every impossible value, each by its name; empty where the config can run."""
        found = []

        def need(good: bool, name: str, expected: str) -> None:
            if not good:
                found.append(f"{name}: {getattr(self, name)!r}, expected {expected}")

        need(self.method in ("grpo", "sft"), "method", '"grpo" or "sft"')
        need(self.engine in ("auto", "transformers", "unsloth"), "engine", "auto, transformers, …")
        need(self.gate in ("on", "off"), "gate", '"on" or "off"')
        known = isinstance(self.report_to, str) and self.report_to in REPORTS
        need(known, "report_to", ", ".join(REPORTS))
        packages = REPORTS[self.report_to] if known else []
        there = not packages or any(find_spec(name) for name in packages)
        need(there, "report_to", f"an installed package: pip install {' or '.join(packages)}")
        for name in ("model", "task", "train_file", "validation_file", "answer_template",
                     "group_by", "init_adapter", "completion_template"):  # fmt: skip
            value, may_be_none = getattr(self, name), name != "model"
            good = (value is None and may_be_none) or (isinstance(value, str) and value != "")
            need(good, name, "a text")
        for name in ("prompts_per_step", "steps", "max_completion_tokens", "lora_rank"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        for name in ("eval_every", "patience", "epochs", "seed", "watchdog_steps"):
            need(is_whole(getattr(self, name), 0), name, "a whole number from 0")
        for name, most in MOST.items():
            value = getattr(self, name)
            need(not is_whole(value, most + 1), name, f"at most {most:,}")
        if is_whole(self.seed, 0):
            need(self.seed < 2**32, "seed", "a number below 2^32, as random generators take them")
        for name in ("eval_rows", "eval_samples", "save_every"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        need(
            is_whole(self.answers_per_prompt, 2),
            "answers_per_prompt",
            "a whole number from 2: one answer has nothing to be compared with",
        )
        automatic = self.learning_rate is None
        need(automatic or is_number(self.learning_rate, above=0), "learning_rate",
             "a number above 0, or none for an automatic one")  # fmt: skip
        need(is_number(self.temperature, above=0), "temperature", "a number above 0")
        for name in ("beta", "entropy_floor"):
            need(is_number(getattr(self, name), least=0), name, "a number from 0")
        for name in ("keep_start", "allow_weak_isolation"):
            need(isinstance(getattr(self, name), bool), name, "true or false")
        need(are_patterns(self.patterns), "patterns", '{"name": "regular expression"}')
        if self.micro_batch is not None:
            whole = is_whole(self.micro_batch, 1)
            if (
                whole
                and is_whole(self.prompts_per_step, 1)
                and is_whole(self.answers_per_prompt, 2)
            ):
                whole = self.batch % self.micro_batch == 0
            need(whole, "micro_batch", "a whole number that divides the answers of a step")
        for name in ("train_file", "validation_file", "init_adapter"):
            place = getattr(self, name)
            if isinstance(place, str) and place:
                need(Path(place).exists(), name, "a file or folder that exists")
        if isinstance(self.task, str) and self.task:
            try:
                load_task(self.task)
            except UserError as error:
                found.append(f"task: {error}")
        if self.task is None:
            for name in ("train_file", "grader"):
                need(getattr(self, name) is not None, name, "a value, or `task` instead")
        return found

    @property
    def batch(self) -> int:
        """Completions that one optimiser step learns from (sft: one a row)."""
        return self.prompts_per_step * (self.answers_per_prompt if self.method == "grpo" else 1)

    def check(self) -> None:
        found = self.problems()
        if found:
            raise UserError("RunConfig: " + "; ".join(found))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: RunConfig, content: bool = False) -> list[str]:
        """The fields in which the two would train differently: "steps: 70 there, 40 here".

        content   those that name rows and grader instead: what they name may be the same all
                  the same, which folder.py knows
        """
        here, there = self.to_json(), other.to_json()
        names = COMPARED_BY_CONTENT if content else set(here) - {*FREE_FIELDS, *COMPARED_BY_CONTENT}
        return [
            f"{name}: {there[name]!r} there, {here[name]!r} here"
            for name in here
            if name in names and not same(name, here[name], there[name])
        ]

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunConfig:
        known = {f.name for f in fields(cls)}
        unknown = sorted(record.keys() - known)
        config = cls(**{name: value for name, value in record.items() if name in known})
        if unknown:
            others = "".join(f"; {problem}" for problem in config.problems())
            raise UserError(
                f"RunConfig: unknown {', '.join(unknown)}, expected fields among "
                f"{', '.join(sorted(known))}: check the spelling{others}"
            )
        return config


def same(name: str, a: Any, b: Any) -> bool:
    """Equal, or two names of one folder."""
    places = name in ("model", "init_adapter") and isinstance(a, str) and isinstance(b, str)
    return a == b or (places and Path(a).exists() and Path(a).resolve() == Path(b).resolve())


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, above: float | None = None, least: float | None = None) -> bool:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            return False
    except OverflowError:  # a whole number beyond every float
        return False
    return (above is None or value > above) and (least is None or value >= least)


def are_patterns(value: Any) -> bool:
    """{"name": "regular expression"}, and every expression compiles."""
    try:
        return isinstance(value, dict) and all(re.compile(v) for v in value.values())
    except (re.error, TypeError):
        return False


def config_base(config: RunConfig) -> str:
    """The folder, or hub name, of the base that the config names.

    Raises UserError where it names an adapter: training would begin without it, from its base.
    """

    base, adapter = model_folder(config.model)
    if adapter is not None:
        raise UserError(
            f'model: {config.model} is an adapter, expected a base: to go on from it, "model" '
            f'names its base ({base}) and "init_adapter" names {config.model}'
        )
    return base


def config_task(config: RunConfig) -> Task:
    """The task that a config names, with the config's own fields in place of the task's; or, where
    it names none, the one that its own fields make up."""
    if config.task is not None:
        task = load_task(config.task)
        own = {name: getattr(config, name) for name in ("answer_template", "group_by", "patterns")}
        changes = {name: value for name, value in own.items() if value}
        if config.grader is not None:
            changes["grader_spec"] = own_task(config).grader_spec
        task = replace(task, **changes)
    else:
        task = own_task(config)
    settings = GraderSettings(allow_weak_isolation=config.allow_weak_isolation)
    return replace(task, settings=settings)


def own_task(config: RunConfig) -> Task:
    return task_from_json(
        {
            "name": Path(config.train_file or "run").stem,
            "question": "",
            "grader": config.grader,
            "answer_template": config.answer_template,
            "group_by": config.group_by,
            "patterns": config.patterns,
            "metrics": ["top1", "mrr"] if config.answer_template else ["grade"],
            "headline": "top1" if config.answer_template else "grade",
        }
    )


def config_rows(config: RunConfig, task: Task) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows): from the config's files, else from the task's folder."""
    named = config.task is not None
    sides = {"train": config.train_file, "validation": config.validation_file}
    rows, held_out = (
        read_rows(file) if file else task.rows(side) if named else []
        for side, file in sides.items()
    )
    return rows, held_out


MEMORY_SHARE = 0.4  # of the free memory, for what grows with the batch


PROMPTS_MEASURED = 256


TINY_WIDTH = 512  # hidden numbers a token; the embedded models have 128 and 256


# Measured on the embedded mini: grpo on validation genes (docs/embedded_models.md); sft is the rate
# of the demo's two SFT rivals (datasets/recorded_runs/demo.json).
TINY_RATES = {"grpo": 2e-3, "sft": 1e-3}


# Quoted: Unsloth's LoRA hyperparameters guide, where to start with models of usual size.
USUAL_RATES = {"grpo": 5e-6, "sft": 2e-4}


@dataclass
class Plan:
    """The derived numbers of a run.

    batch            completions an optimiser step learns from
    micro_batch      completions a forward and backward pass; accumulation: passes a step
    generation_batch completions sampled at a time: the batch, so every answer is used once
    steps            optimiser steps at most; completions: drawn for training in all of them
    passes           how often each row is seen, on average
    looks            at the held-out rows, that before step 1 among them; look_answers: drawn each
    checkpoints      written at most
    learning_rate    of the LoRA weights, after three steps
    reasons          one sentence an automatic choice
    """

    method: str
    rows: int
    held_out_rows: int
    prompts_per_step: int
    answers_per_prompt: int
    batch: int
    micro_batch: int
    accumulation: int
    generation_batch: int
    steps: int
    completions: int
    passes: float
    looks: int
    look_answers: int
    checkpoints: int
    learning_rate: float
    reasons: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Plan:
        return cls(**record)

    def lines(self) -> list[str]:
        """The plan as a reader wants it, one line a fact."""
        grpo = self.method == "grpo"
        each = f" x {self.answers_per_prompt} answers = {self.batch} completions" if grpo else ""
        text = [
            f"rows        {self.rows}, each seen {self.passes:.1f} times",
            f"step        {self.prompts_per_step} prompts{each}",
            f"passes      {self.accumulation} a step, {self.micro_batch} completions each",
            f"steps       {self.steps} at most, a checkpoint every so often: {self.checkpoints}",
        ]
        if grpo:
            text.append(f"sampling    {self.completions} completions, {self.batch} at a time")
        if self.looks:
            text.append(
                f"held out    {self.held_out_rows} rows, {self.looks} looks of "
                f"{self.look_answers} answers, the one before step 1 among them"
            )
        else:
            text.append("held out    never looked at: no best adapter, no early stop")
        return text + [f"because     {reason}" for reason in self.reasons]


@dataclass
class ModelShape:
    """What memory depends on. Parameters are counted by the usual formula, embeddings included."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    bytes_a_number: int
    parameters: float
    context: int | None = None  # tokens that it was made for, prompt and answer together


def make_plan(
    config: RunConfig,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    shape: ModelShape | None = None,
    prompt_tokens: int = 0,
    free_bytes: float | None = None,
) -> Plan:
    """The plan of a config over these rows; nothing is loaded here.

    shape, prompt_tokens (the longest prompt), free_bytes   what `measure_model` found; without
    them the whole batch goes through at once
    """
    grpo, batch = config.method == "grpo", config.batch
    steps, reasons = config.steps, []
    if not grpo and config.epochs:
        whole = -(-config.epochs * len(rows) // config.prompts_per_step)
        if whole < steps:
            steps = whole
            reasons.append(f"{steps} steps: {config.epochs} passes over {len(rows)} rows")
    micro, why = choose_micro_batch(config, shape, prompt_tokens, free_bytes)
    rate, reason = choose_learning_rate(config, shape)
    reasons += [why, reason]
    context = shape.context if shape else None
    if context and prompt_tokens + config.max_completion_tokens > context:
        reasons.append(
            f"WARNING: the longest prompt ({prompt_tokens} tokens) and max_completion_tokens "
            f"{config.max_completion_tokens} exceed what the model was made for ({context}): set "
            f"max_completion_tokens to {max(context - prompt_tokens, 1)} or less"
        )
    seen = min(len(held_out), config.eval_rows)
    looks = 1 + -(-steps // config.eval_every) if seen and config.eval_every else 0
    return Plan(
        method=config.method,
        rows=len(rows),
        held_out_rows=seen,
        prompts_per_step=config.prompts_per_step,
        answers_per_prompt=config.answers_per_prompt if grpo else 1,
        batch=batch,
        micro_batch=micro,
        accumulation=batch // micro,
        generation_batch=batch if grpo else 0,
        steps=steps,
        completions=steps * batch if grpo else 0,
        passes=round(steps * config.prompts_per_step / max(len(rows), 1), 2),
        looks=looks,
        look_answers=seen * config.eval_samples if looks else 0,
        checkpoints=-(-steps // config.save_every),
        learning_rate=rate,
        reasons=reasons,
    )


def choose_learning_rate(config: RunConfig, shape: ModelShape | None) -> tuple[float, str]:
    """(learning rate, why). The wider a model, the smaller the step that changes what it says.

    Where the width is not known, only the embedded models count as tiny: too small a step wastes
    a run, too large a one destroys what the model could do.
    """
    if config.learning_rate is not None:
        return config.learning_rate, f"learning_rate {config.learning_rate:g}: you asked for it"
    tiny = shape.hidden < TINY_WIDTH if shape else config.model.startswith("embedded:")
    rate = (TINY_RATES if tiny else USUAL_RATES)[config.method]
    kind = "a tiny model: measured on the embedded mini" if tiny else (
        f"LoRA with {config.method} on a model of usual size: quoted from Unsloth's guide"
    )  # fmt: skip
    width = f" (hidden {shape.hidden})" if shape else ""
    return rate, f"learning_rate {rate:g}{width}, for {kind}; three times that if nothing moves"


def choose_micro_batch(
    config: RunConfig, shape: ModelShape | None, prompt_tokens: int, free_bytes: float | None
) -> tuple[int, str]:
    """(completions a pass, why): the largest divisor of the batch that the memory holds."""
    batch = config.batch
    if config.micro_batch is not None:
        return config.micro_batch, f"micro_batch {config.micro_batch}: you asked for it"
    if shape is None or not free_bytes:
        return batch, f"micro_batch {batch}, the whole batch: the model's size is not known here"
    each = bytes_an_answer(shape, prompt_tokens, config.max_completion_tokens)
    room = MEMORY_SHARE * free_bytes
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * each <= room]
    chosen = max(fitting, default=1)
    what = (
        f"computed, {each / 1e6:.0f} MB an answer of {prompt_tokens} + "
        f"{config.max_completion_tokens} tokens (layers {shape.layers}, hidden {shape.hidden}, "
        f"vocabulary {shape.vocabulary}); {room / 1e9:.1f} GB may be used, {MEMORY_SHARE:.0%} of "
        "what is free"
    )
    if chosen == batch:
        return batch, f"micro_batch {batch}, the whole batch in one pass: {what}"
    if not fitting:
        return 1, f"micro_batch 1, and even that may not fit: {what}; shorten max_completion_tokens"
    return chosen, f"micro_batch {chosen}, gradients of {batch // chosen} passes added up: {what}"


def bytes_an_answer(shape: ModelShape, prompt_tokens: int, completion_tokens: int) -> float:
    """Memory that one more answer in a pass takes (an upper estimate, without checkpointing).

    Activations: Korthikanti et al., Reducing Activation Recomputation (2022), equation 1, which
    counts 16-bit numbers: s·h·(34 + 5·a·s/h) bytes a layer. Logits: in fp32 over the completion,
    with their gradient and one copy for the log-probabilities.
    """
    tokens = prompt_tokens + completion_tokens
    layer = tokens * shape.hidden * (34 + 5 * shape.heads * tokens / shape.hidden)
    activations = shape.layers * layer * shape.bytes_a_number / 2
    logits = completion_tokens * shape.vocabulary * 4 * 3
    return activations + logits


def measure_model(
    config: RunConfig, rows: Sequence[dict[str, Any]], tokenizer: Any = None
) -> dict[str, Any]:
    """{"shape", "prompt_tokens", "free_bytes"} for make_plan; no weights are loaded.

    tokenizer   the model's, where it is loaded already
    """
    from rftkit.environment import choose_device

    base = config_base(config)
    device, dtype, _ = choose_device()
    try:
        from transformers import AutoConfig, AutoTokenizer

        found = AutoConfig.from_pretrained(base).get_text_config()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError):
        return {}  # loading the model will say what is wrong with it
    reader = LocalPolicy(None, tokenizer, config.model)
    chosen = random.Random(0).sample(list(rows), min(PROMPTS_MEASURED, len(rows)))
    texts = [reader.render(row["messages"]) for row in chosen]
    ids = tokenizer(texts, add_special_tokens=False).input_ids if texts else [[]]
    layers, hidden, vocabulary = found.num_hidden_layers, found.hidden_size, found.vocab_size
    inner = getattr(found, "intermediate_size", None) or 4 * hidden
    parameters = layers * (4 * hidden**2 + 3 * hidden * inner) + 2 * vocabulary * hidden
    shape = ModelShape(
        layers,
        hidden,
        getattr(found, "num_attention_heads", 1),
        vocabulary,
        4 if dtype == "float32" else 2,
        float(parameters),
        getattr(found, "max_position_embeddings", None),
    )
    free = free_memory(device) - parameters * shape.bytes_a_number
    return {
        "shape": shape,
        "prompt_tokens": max(len(i) for i in ids),
        "free_bytes": max(free, 1.0),
    }


def free_memory(device: str) -> float:
    """Bytes that are free: of the GPU, or of the machine (its total where that is all it says)."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4e9


def run_order(rows: int, steps: int, prompts_per_step: int, seed: int) -> list[int]:
    """The row of every prompt of the whole run: steps * prompts_per_step numbers.

    One shuffled pass over the rows after the other, fixed by the seed alone, so that a resumed run
    meets the rows that it would have met. (TRL's own sampler starts its shuffling anew when a run
    goes on in a later pass.)
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * prompts_per_step:
        order += torch.randperm(rows, generator=generator).tolist()
    return order[: steps * prompts_per_step]
