"""Ways of doing the same GRPO steps, each in a process of its own that waits for its turn.

trl_defaults   TRL's GRPOTrainer and PEFT as they come: gradient checkpointing, 8 answers a pass,
               bf16 autocast, transformers' generate
trl_one_pass   the same with all answers of a step in one pass
trl            the same with rftkit's settings: one pass, no checkpointing, fp32 on a CPU
rftkit         rftkit.training.train(): its own sampler, its log and its checkpoints
floor          a loop written by hand around the model, with nothing in it but the arithmetic

The same in all four: model, adapter and its first weights, rows and their order, answers a prompt,
limit, temperature, grader, loss (TRL's default, dapo, with a KL term), AdamW and its learning rate.
Not the same: the random numbers of the sampled answers, and so the answers.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rftkit.graders.rewards import reward_function
from rftkit.training.config import RunConfig

# --- a turn: one step, then wait -----------------------------------------------------------------


class Turns:
    """The clock of one way. `pause` ends a step: its numbers go out, and the next step waits."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.parts: dict[str, float] = {}
        self.reward: float | None = None
        self.tokens: float | None = None
        self.more: dict[str, float] = {}
        self.undo = contextlib.ExitStack()  # of what was changed in the libraries to time them
        self.begin()

    def begin(self) -> None:
        self.parts.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """The step's seconds (wall and processor), where they went, its mean reward and tokens an
        answer, and this process's peak memory."""
        from rftkit.environment import peak_memory_mb

        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.connection.send(
            {
                "seconds": wall,
                "cpu_seconds": cpu,
                "parts": dict(self.parts),
                "reward": self.reward,
                "tokens": self.tokens,
                "peak_rss_mb": peak_memory_mb(),
                **self.more,
            }
        )
        self.connection.recv()
        self.begin()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began

    def watch(self, owner: Any, method: str, name: str | Callable[[], str]) -> None:
        """Count the seconds of owner.method under `name`."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return original(*arguments, **named)

        self.change(owner, method, timed)

    def change(self, owner: Any, method: str, function: Callable) -> None:
        """owner.method becomes `function`, until undo is closed."""
        self.undo.callback(setattr, owner, method, getattr(owner, method))
        setattr(owner, method, function)

    def watch_trl(self) -> None:
        """Where the seconds of TRL's trainer go; what is in none of these is its overhead."""
        import torch
        from accelerate import Accelerator
        from torch.optim import optimizer
        from trl import GRPOTrainer

        self.watch(GRPOTrainer, "_generate", "sampling")
        self.watch(GRPOTrainer, "_calculate_rewards", "grading")
        self.watch(
            GRPOTrainer,
            "_get_per_token_logps_and_entropies",
            lambda: "forward" if torch.is_grad_enabled() else "reference",
        )
        self.watch(Accelerator, "backward", "backward")
        began = []

        def note(*given: Any) -> None:
            began.append(time.perf_counter())

        def count(*given: Any) -> None:
            self.parts["optimizer"] = time.perf_counter() - began.pop()

        self.undo.callback(optimizer.register_optimizer_step_pre_hook(note).remove)
        self.undo.callback(optimizer.register_optimizer_step_post_hook(count).remove)


def run_way(way: str, config: RunConfig, folder: Path, threads: int, exact: bool, to: Any) -> None:
    """What a child process does: the way's steps, one a turn, until it is killed.

    exact   the end token counts as any other, so that every answer has the limit's length
    """
    import torch

    torch.set_num_threads(threads)
    try:
        if exact:
            ignore_end_tokens()
        WAYS[way](config, folder, Turns(to), exact)
        to.send({"error": f"{way} has no step left, expected more of them: raise config.steps"})
    except Exception as error:
        import traceback

        to.send({"error": f"{way}: {type(error).__name__}: {error}\n{traceback.format_exc()}"})


def ignore_end_tokens() -> None:
    from rftkit import decoding
    from rftkit.training.session import StepReward

    decoding.end_tokens = lambda model, tokenizer: set()
    StepReward.check_first_batch = lambda self, prompts, ids: None  # it asks for end tokens


# --- the four ways -------------------------------------------------------------------------------


def rftkit(config: RunConfig, folder: Path, turns: Turns, exact: bool = False) -> None:
    """The whole of train(): records, samples and a checkpoint every `save_every` steps included."""
    from rftkit.training.run import train
    from rftkit.training.session import Session
    from rftkit.training.store import Recorder

    turns.watch_trl()
    turns.watch(Recorder, "step", "records")
    turns.watch(Session, "save", "checkpoint")
    write = Recorder.step

    def write_and_pause(self: Recorder, record: dict, samples: Any = ()) -> None:
        write(self, record, samples)
        turns.reward, turns.tokens = record["reward_mean"], record["completion_tokens"]
        turns.more = {"grad_norm": record["grad_norm"]}
        turns.pause()

    turns.change(Recorder, "step", write_and_pause)
    train(config, folder / "run")


def trl_defaults(config: RunConfig, folder: Path, turns: Turns, exact: bool = False) -> None:
    default = min(8, config.batch)
    stock(config, turns, exact, defaults(config, folder, default))


def trl_one_pass(config: RunConfig, folder: Path, turns: Turns, exact: bool = False) -> None:
    stock(config, turns, exact, defaults(config, folder, config.batch))


def defaults(config: RunConfig, folder: Path, answers_a_pass: int) -> dict[str, Any]:
    """What the steps are is stated; how they are computed is left to TRL."""
    import torch

    return dict(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=answers_a_pass,
        gradient_accumulation_steps=config.batch // answers_a_pass,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        seed=config.seed,
    )


def trl(config: RunConfig, folder: Path, turns: Turns, exact: bool = False) -> None:
    from rftkit.training.config import config_rows, config_task
    from rftkit.training.plan import make_plan
    from rftkit.training.trainer import trainer_settings

    plan = make_plan(config, *config_rows(config, config_task(config)))
    stock(config, turns, exact, trainer_settings(config, plan, folder))


def stock(config: RunConfig, turns: Turns, exact: bool, settings: dict[str, Any]) -> None:
    """TRL's trainer, PEFT's adapter, transformers' generate."""
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rftkit.environment import set_seed
    from rftkit.training.config import config_rows, config_task
    from rftkit.training.trainer import prompt_table

    class Pause(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            turns.pause()

    turns.watch_trl()
    task = config_task(config)
    rows, _ = config_rows(config, task)
    set_seed(config.seed)
    model, tokenizer = load(config)
    arguments = GRPOConfig(
        **settings,
        num_generations=config.answers_per_prompt,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        beta=config.beta,
        shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": config.max_completion_tokens} if exact else None,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=noted_reward(task, model, tokenizer, turns),
        train_dataset=prompt_table(rows, config.steps, config),
        args=arguments,
        peft_config=LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Pause()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()


def load(config: RunConfig) -> tuple[Any, Any]:
    """(model, tokenizer) as rftkit loads them: fp32 on a CPU."""
    from rftkit.policy import load_model, model_folder

    return load_model(model_folder(config.model)[0], "transformers")[:2]


def noted_reward(task: Any, model: Any, tokenizer: Any, turns: Turns) -> Callable:
    """The grader as TRL's reward function; what it gave is noted for the turn's report."""
    from rftkit.decoding import end_tokens

    reward = reward_function(
        task.grader, item_column="item", end_token_ids=end_tokens(model, tokenizer)
    )

    @functools.wraps(reward)
    def noted(completions: list, completion_ids: list, **columns: Any) -> list[float | None]:
        found = reward(completions, completion_ids=completion_ids, **columns)
        turns.reward = sum(found) / len(found)
        turns.tokens = sum(map(len, completion_ids)) / len(completion_ids)
        return found

    return noted


def floor(
    config: RunConfig,
    folder: Path,
    turns: Turns,
    exact: bool = False,
    sampler: Callable | None = None,
) -> None:
    """The bare loop. The base stands in memory three times: with the adapter (what learns), as it
    is (the reference), and with the adapter added in (what is sampled)."""

    import torch

    from rftkit.decoding import end_tokens
    from rftkit.environment import set_seed
    from rftkit.training.config import config_rows, config_task
    from rftkit.training.run import with_lora
    from rftkit.training.trainer import prompt_table

    task = config_task(config)
    rows, _ = config_rows(config, task)
    set_seed(config.seed)
    base, tokenizer = load(config)
    model = with_lora(base, config, "transformers").train()
    reference, sampled = load(config)[0].eval(), load(config)[0].eval()
    device = sampled.device
    reward = noted_reward(task, base, tokenizer, turns)
    ends = set() if exact else end_tokens(base, tokenizer)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, weight_decay=0.0, fused=True)
    table = prompt_table(rows, config.steps, config)
    group = config.answers_per_prompt
    for step in range(config.steps):
        batch = table[step * config.prompts_per_step : (step + 1) * config.prompts_per_step]
        with turns.part("sampling"):
            texts = [
                tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
                for p in batch["prompt"]
            ]
            prompts = tokenizer(texts, add_special_tokens=False).input_ids
            add_adapter(model, sampled)
            answers = (sampler or draw)(sampled, prompts, group, config, ends, step)
        with turns.part("grading"):
            said = tokenizer.batch_decode(answers, skip_special_tokens=True)
            completions = [[{"role": "assistant", "content": text}] for text in said]
            items = [item for item in batch["item"] for _ in range(group)]
            found = reward(completions, answers, item=items)
            rewards_P_G = torch.tensor(found, device=device).view(-1, group)
        spread = rewards_P_G.std(1, keepdim=True) + 1e-4
        advantages = ((rewards_P_G - rewards_P_G.mean(1, keepdim=True)) / spread).view(-1, 1)
        ids, mask, width = side_by_side(prompts, answers, group, tokenizer.pad_token_id, device)
        with turns.part("reference"), torch.no_grad():
            before = log_probabilities(reference, ids, mask, width, config.temperature)
        with turns.part("forward"):
            now = log_probabilities(model, ids, mask, width, config.temperature)
            # One update a batch: the ratio is 1 and never clipped, its gradient is that of `now`.
            ratio = (now - now.detach()).exp()
            kl = (before - now).exp() - (before - now) - 1
            said = mask[:, -width:]
            loss = ((config.beta * kl - ratio * advantages) * said).sum() / said.sum()
        with turns.part("backward"):
            loss.backward()
        with turns.part("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, step / 3)
            optimizer.step()
            optimizer.zero_grad()
        turns.more = {"grad_norm": float(norm)}
        turns.pause()


def draw(
    model: Any, prompts: list[list[int]], group: int, config: RunConfig, ends: set[int], step: int
) -> list[list[int]]:
    """`group` answers to each prompt: every prompt is read once, answers leave as they end."""
    import torch

    with torch.inference_mode():
        ids, mask, _ = side_by_side(prompts, [[]] * len(prompts), 1, 0, model.device)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        cache.batch_repeat_interleave(group)
        logits, mask = (x.repeat_interleave(group, 0) for x in (out.logits[:, -1], mask))
        answers: list[list[int]] = [[] for _ in range(len(mask))]
        rows, place = list(range(len(mask))), mask.sum(-1, keepdim=True)
        ended: set[int] = set()
        for left in reversed(range(config.max_completion_tokens)):
            token = torch.softmax(logits / config.temperature, -1).multinomial(1)
            for row, number in zip(rows, token[:, 0].tolist()):
                if row not in ended:
                    answers[row].append(number)
                    if number in ends:
                        ended.add(row)
            going = [i for i, row in enumerate(rows) if row not in ended]
            if not left or not going:
                break
            if len(going) <= 0.8 * len(rows):  # to leave costs a copy of all that stay
                rows, index = [rows[i] for i in going], torch.tensor(going, device=model.device)
                cache.batch_select_indices(index)
                token, mask, place = token[index], mask[index], place[index]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            logits = model(
                input_ids=token, attention_mask=mask, position_ids=place, past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]  # fmt: skip
            place = place + 1
    return answers


def add_adapter(model: Any, sampled: Any) -> None:
    """sampled's weights become the base's plus the adapter's."""
    import torch

    with torch.no_grad():
        for name, layer in model.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                weight = layer.base_layer.weight + layer.get_delta_weight("default")
                sampled.get_submodule(name).weight.copy_(weight)


def side_by_side(
    prompts: list[list[int]], answers: list[list[int]], group: int, pad: int, device: Any
) -> tuple[Any, Any, int]:
    """(ids, mask, width of the answers): prompts end where answers begin, in every row."""
    import torch

    before, width = max(map(len, prompts)), max(map(len, answers))
    ids = torch.full((len(answers), before + width), pad)
    mask = torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        prompt = prompts[row // group]
        ids[row, before - len(prompt) : before + len(answer)] = torch.tensor(prompt + answer)
        mask[row, before - len(prompt) : before + len(answer)] = 1
    return ids.to(device), mask.to(device), width


def log_probabilities(model: Any, ids: Any, mask: Any, width: int, temperature: float) -> Any:
    """Of each token of the answers: shape (rows, width)."""
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width + 1)
    logits = out.logits[:, :-1].float() / temperature
    chosen = logits.gather(-1, ids[:, -width:, None])[..., 0]
    return chosen - logits.logsumexp(-1)


WAYS: dict[str, Callable] = {
    "trl_defaults": trl_defaults,
    "trl_one_pass": trl_one_pass,
    "trl": trl,
    "rftkit": rftkit,
    "floor": floor,
}
