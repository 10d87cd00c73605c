"""The steps of a run: what TRL's trainers are given, and what happens when a step's log comes."""

import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rftkit.environment import gathered, process
from rftkit.files import UserError
from rftkit.graders.answer import fill_template
from rftkit.packing import rows_apart, token_logprobs
from rftkit.policy import Prompt
from rftkit.rows import row_ids
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.plan import Plan, run_order
from rftkit.training.session import Interrupted, Session, StepReward
from rftkit.training.store import record_of
from rftkit.training.watchdogs import SKIPS_IN_A_ROW, TrainingStopped, save_batch


def run_steps(session: Session) -> None:
    """The steps, through TRL's trainer, from the session's checkpoint where it has one."""
    from datasets import Dataset
    from transformers import PrinterCallback

    config, plan, policy, rows = session.config, session.plan, session.policy, session.rows
    reward = StepReward(session) if config.method == "grpo" else None
    if reward:  # the prompt is all that the model reads; the row travels beside it, to the grader
        session.task.grader.check_rows(rows)
        # TRL renders messages for Unsloth, but knows no tools of a row.
        read = policy.known_roles if policy.engine == "unsloth" else policy.render
        examples = [
            {"prompt": read(Prompt(row)), "item": json.dumps(row), "row_id": row_id}
            for row, row_id in zip(rows, row_ids(rows))
        ]
    else:
        examples = [sft_example(policy, session.task, row, config) for row in rows]
    order = run_order(len(rows), plan.steps, config.prompts_per_step, config.seed)
    table = Dataset.from_list(examples).select(order)
    given = dict(model=policy.model, processing_class=policy.tokenizer, train_dataset=table)
    trainer = grpo_trainer(session, reward, given) if reward else sft_trainer(session, given)
    trainer.add_callback(step_callback(session, trainer, reward))
    trainer.remove_callback(PrinterCallback)
    recorder = session.recorder
    recorder.notify("begin", plan, list(recorder.log), session.progress.start)
    trainer.train(resume_from_checkpoint=session.resume_from and str(session.resume_from))
    if session.interrupted.is_set():
        raise Interrupted(f"interrupted after step {session.step}: the same command resumes")


def grpo_trainer(session: Session, reward: StepReward, given: dict[str, Any]) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import GRPOConfig, GRPOTrainer

    model, config, plan = session.policy.model, session.config, session.plan
    trainer = (shared_prompts_trainer() if plan.shared_prompts else GRPOTrainer)(
        **given,
        reward_funcs=reward,
        # Unsloth samples through kernels of its own.
        rollout_func=reward.draw if session.policy.engine != "unsloth" else None,
        args=GRPOConfig(
            **trainer_settings(config, plan, session.out),
            num_generations=config.answers_per_prompt,
            max_completion_length=config.max_completion_tokens,
            temperature=config.temperature,
            chat_template_kwargs=config.chat_template_kwargs,  # where TRL draws
            beta=config.beta,
            use_vllm=config.vllm_server is not None,
            vllm_mode="server",
            vllm_server_base_url=config.vllm_server,
            shuffle_dataset=False,  # run_order has drawn the order of the whole run
        ),
    )
    if not config.init_adapter and "ref" in model.peft_config:
        # TRL keeps a copy of the adapter as the reference. Of one that has learned nothing it adds
        # zeros to the base; without the copy TRL takes the base alone: the same numbers, sooner.
        model.delete_adapter("ref")
    return trainer


def sft_trainer(session: Session, given: dict[str, Any]) -> Any:
    """Completions are given, and the loss is on them alone."""
    from trl import SFTConfig, SFTTrainer

    settings = trainer_settings(session.config, session.plan, session.out)
    order = {"train_sampling_strategy": "sequential"}  # run_order has drawn it
    return SFTTrainer(**given, args=SFTConfig(**settings, **order, max_length=None))


def trainer_settings(config: RunConfig, plan: Plan, out: Path) -> dict[str, Any]:
    """What both trainers share: one optimiser step a batch, of which each process has an equal
    share; nothing saved."""
    import torch

    gpu, share = torch.cuda.is_available(), plan.batch // process()[1]
    micro_batch = math.gcd(plan.micro_batch, share)  # a run may resume with more processes
    return dict(
        output_dir=str(out / "checkpoints"),
        max_steps=plan.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=share // micro_batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        seed=config.seed,
        gradient_checkpointing=False,  # it saves memory, which is here, and costs a third
        bf16=gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not gpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=gpu,
        save_strategy="no",  # Session.save does it
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite is shown, not smoothed away
        report_to=[],
        disable_tqdm=True,
    )


def sft_example(policy, task: Task, row: dict, config: RunConfig) -> dict[str, list[int]]:
    """Token ids, and labels that are -100 (not learned) on the prompt."""
    completion = row.get("completion")
    if completion is None:
        template = config.completion_template or task.answer_template
        if template is None:
            raise UserError("method sft: no `completion` in a row and no answer_template: add one")
        head, _, body = template.rpartition("</think>")
        completion = (head + "</think>" if head else "") + fill_template(body, row)
    tokenizer = policy.tokenizer
    (prompt,) = policy.encode([Prompt(row)])
    answer = tokenizer(completion, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def step_callback(session: Session, trainer: Any, reward: StepReward | None) -> Any:
    """Turns TRL's log of a step into ours, and does what is due then."""
    from transformers import TrainerCallback

    config, held_out, watchdogs = session.config, session.held_out, session.watchdogs

    class Step(TrainerCallback):
        skipped = False  # its gradient was not finite

        def on_step_begin(self, args, state, control, **rest):
            session.clock.clear()
            self.began = time.perf_counter()

        def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
            self.skipped = watchdogs.not_finite(model.parameters())

        def on_log(self, args, state, control, logs=None, **rest):
            if not logs or "loss" not in logs:
                return  # the summary at the end of training
            step, samples = state.global_step, reward.samples if reward else ()
            record = record_of(step, logs) | (reward.summary() if reward else {})
            alarms = watchdogs.read(record)
            if self.skipped or record["loss"] is None:
                alarms.append(watchdogs.skip_alarm(record["loss"]))
            for alarm in alarms:
                save_batch(session.out, step, alarm["name"], samples)
            elapsed = time.perf_counter() - self.began
            session.clock["training"] = elapsed - sum(session.clock.values())
            if held_out.rows and (step % config.eval_every == 0 or step >= state.max_steps):
                with session.timed("evaluation"):
                    record["validation"], drift = held_out.validate(session.policy, step)
                alarms += drift
            record |= {"alarms": alarms} if alarms else {}
            record["timings"] = {part: round(s, 3) for part, s in session.clock.items()}
            session.recorder.step(record, samples)
            self.finish(control, next((a for a in alarms if a.get("stops")), None))

        def finish(self, control, alarm: dict[str, Any] | None) -> None:
            """The checkpoint comes after the record, for it notes how long its files are."""
            broken = alarm is not None and alarm["name"] == "not finite"
            session.stopped = None if broken else alarm  # once it is fixed, that run goes on
            interrupted = session.interrupted.is_set()
            states = gathered((session.is_over or broken, interrupted))
            if any(interrupted for _, interrupted in states):
                session.interrupted.set()
            ends = states[0][0] or session.interrupted.is_set()
            control.should_training_stop |= ends
            if ends or session.step % config.save_every == 0:
                session.save(trainer)
            if broken:
                times = f"{alarm['cause']}; {SKIPS_IN_A_ROW} times in a row, batches in alarms/"
                raise TrainingStopped(f"step {session.step}: {times}")

    return Step()


def shared_prompts_trainer() -> type:
    """TRL's GRPOTrainer (1.14.2) with log-probabilities from one copy of each prompt, for models
    of which `packing.reason_to_copy` is "". The numbers are TRL's own, up to rounding."""
    import torch
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    class SharedPromptsTrainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(
            self,
            model,
            input_ids,  # (N, T): prompts padded on the left, completions on the right
            attention_mask,
            logits_to_keep,  # the width of the completions
            batch_size=None,
            compute_entropy=False,
            **images,  # there are none
        ):
            hidden = self.model.config.get_text_config().hidden_size  # `model` may be wrapped
            size, parts = batch_size or len(input_ids), []
            for chunk in zip(input_ids.split(size), attention_mask.split(size)):
                prompts, completions = rows_apart(*chunk, logits_to_keep)
                if sharing_pays(prompts, completions, hidden):
                    tables = token_logprobs(
                        model, prompts, completions, self.temperature, compute_entropy
                    )
                else:
                    tables = super()._get_per_token_logps_and_entropies(
                        model, *chunk, logits_to_keep, compute_entropy=compute_entropy
                    )
                parts.append(tables[: 1 + compute_entropy])
            logprobs, *entropies = (
                torch.cat([pad(table, (0, logits_to_keep - table.shape[1])) for table in kind])
                for kind in zip(*parts)
            )
            return logprobs, entropies[0] if entropies else None, None

        def _prepare_inputs(self, generation_batch):
            """TRL shuffles a batch before it is split into passes. As drawn, a group stays
            together, so that a pass shares its prompt; the step's gradient is the same sum."""
            shuffle, grpo_trainer.shuffle_sequence_dict = grpo_trainer.shuffle_sequence_dict, dict
            try:
                return super()._prepare_inputs(generation_batch)
            finally:
                grpo_trainer.shuffle_sequence_dict = shuffle

    pad = torch.nn.functional.pad
    return SharedPromptsTrainer


def sharing_pays(prompts: list[list[int]], completions: list[list[int]], hidden: int) -> bool:
    """Does it take fewer operations? A token passes about 12·h² weights a layer, and attention over
    T tokens adds 2·T·h: long completions side by side cost more than copies of a prompt."""
    beside = Counter()  # tokens of all completions of a prompt
    for prompt, completion in zip(prompts, completions):
        beside[tuple(prompt)] += len(completion)

    def cost(rows: int, after: int) -> int:
        tokens = max(map(len, prompts)) + after
        return rows * tokens * (12 * hidden + 2 * tokens)

    shared = cost(len(beside), max(beside.values()))
    return shared < cost(len(prompts), max(map(len, completions)))
