"""SFT through TRL's SFTTrainer: the same run, but the completions are given, not sampled."""

from __future__ import annotations

from rftkit.data.errors import UserError
from rftkit.graders import fill_template
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.plan import run_order
from rftkit.training.steps import Session, run_trainer, trainer_settings


def run_sft(session: Session) -> None:
    """SFT through TRL's trainer, one session of it: the loss on the completion alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy, task, config, plan = session.policy, session.task, session.config, session.plan
    table = Dataset.from_list([sft_example(policy, task, row, config) for row in session.rows])
    order = run_order(len(session.rows), plan.steps, config.prompts_per_step, config.seed)
    trainer = SFTTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        train_dataset=table.select(order),
        args=SFTConfig(
            **trainer_settings(config, plan, session.out),
            max_length=None,
            train_sampling_strategy="sequential",  # run_order has drawn the order of the whole run
        ),
    )
    run_trainer(session, trainer)


def sft_example(policy, task: Task, row: dict, config: RunConfig) -> dict[str, list[int]]:
    """Token ids, and labels that are -100 (not learned) on the prompt."""
    completion = row.get("completion")
    if completion is None:
        template = config.completion_template or task.answer_template
        if template is None:
            raise UserError(
                "method sft: rows without `completion` and no answer_template, expected one of "
                "them: say how a right answer is written"
            )
        head, _, body = template.rpartition("</think>")
        completion = (head + "</think>" if head else "") + fill_template(body, row)
    tokenizer = policy.tokenizer
    prompt = tokenizer(policy.render(row["messages"]), add_special_tokens=False).input_ids
    answer = tokenizer(completion, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
