"""A reward model: a small trained head that guesses the grade of an answer, used as a grader.

    model = fit_reward_model(policy, rows, samples)      # samples[row][index], graded
    task.grader = model.as_grader()                      # and train() as ever

Where no rule can grade, people (or a slow judge) grade some answers, and a logistic head on the
last hidden states of a frozen base predicts the grade (Ouyang et al. 2022, section 3.5). A policy
trained against it finds what the head overrates: validate on the TASK's metric, fit again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rftkit.files import UserError
from rftkit.graders.grader import Grader, grader
from rftkit.policy import LocalPolicy, Prompt
from rftkit.records import Sample

if TYPE_CHECKING:
    import torch

Rows = Sequence[dict[str, Any]]
Groups = Sequence[Sequence[Sample]]  # samples[row][index]
RIDGE = 1e-2  # weight of the penalty on the head's squared weights
BATCH = 64
LEAST = 20  # graded answers under which nothing is fitted


@dataclass
class RewardModel:
    policy: LocalPolicy
    head: torch.Tensor  # (hidden + 1,), its last entry the bias
    center: torch.Tensor  # (hidden,), of the features
    scale: torch.Tensor

    def score(self, rows: Rows, outputs: Sequence[str]) -> list[float]:
        """The guessed grade, 0 to 1, of each output as the answer to its row's messages."""
        if not outputs:
            return []
        features = (read_answers(self.policy, rows, outputs) - self.center) / self.scale
        return (features @ self.head[:-1] + self.head[-1]).sigmoid().tolist()

    def as_grader(self, name: str = "reward_model") -> Grader:
        """For a Task in this process: no task.json can hold it. Train with gate="off", for the gate
        asks for full marks for the right answer; look at `agreement` instead."""

        @grader(name=name)
        def guess(sample: dict, item: dict) -> float:
            return self.score([item], [sample["output_text"]])[0]

        return guess


def fit_reward_model(policy: LocalPolicy, rows: Rows, samples: Groups) -> RewardModel:
    """Fit the head to samples[row][index].grade (0 to 1): logistic regression with a small ridge,
    to its optimum. The policy must not change afterwards: load a base for this alone."""
    import torch

    pairs = [(row, s) for row, group in zip(rows, samples, strict=True) for s in group]
    pairs = [(row, sample) for row, sample in pairs if sample.grade is not None]
    grades = torch.tensor([s.grade for _, s in pairs]).clamp(0.0, 1.0)
    if len(pairs) < LEAST or len(set(grades.tolist())) == 1:
        expected = f"expected {LEAST} or more answers of different grades: grade more of them"
        raise UserError(f"reward model: {len(pairs)} graded answers, {expected}")
    features = read_answers(policy, [r for r, _ in pairs], [s.output_text for _, s in pairs])
    center, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    inputs = (features - center) / scale
    head = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    fit = torch.optim.LBFGS([head], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        fit.zero_grad()
        guessed = inputs @ head[:-1] + head[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(guessed, grades)
        value = value + RIDGE * head[:-1].square().sum()
        value.backward()
        return value

    fit.step(loss)
    return RewardModel(policy, head.detach(), center, scale)


def read_answers(policy: LocalPolicy, rows: Rows, outputs: Sequence[str]) -> torch.Tensor:
    """The last layer's states, averaged over each answer's tokens: (answers, hidden), in fp32. The
    last token's alone is mostly about what comes next."""
    import torch

    tokenizer, model = policy.tokenizer, policy.model
    device, features = next(model.parameters()).device, []
    answers = [text + tokenizer.eos_token for text in outputs]
    whole = policy.encode([policy.render(Prompt(r), text) for r, text in zip(rows, answers)])
    lengths = list(map(len, policy.encode(answers)))
    with torch.inference_mode():
        for start in range(0, len(whole), BATCH):
            chosen = {"input_ids": whole[start : start + BATCH]}
            batch = tokenizer.pad(chosen, return_tensors="pt").to(device)  # padded on the left
            places = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            asked = {"output_hidden_states": True, "logits_to_keep": 1}
            states = model(**batch, position_ids=places, **asked).hidden_states[-1]
            for row, length in zip(states, lengths[start : start + BATCH]):
                features.append(row[-length:].float().mean(0).cpu())
    return torch.stack(features).clone()


def agreement(model: RewardModel, rows: Rows, samples: Groups) -> float:
    """How often the model ranks two answers to the same row as their grades do (ties left out)."""
    right = total = 0
    for row, group in zip(rows, samples):
        graded = [s for s in group if s.grade is not None]
        guesses = model.score([row] * len(graded), [s.output_text for s in graded])
        for (a, guess), (b, other) in combinations(zip(graded, guesses), 2):
            if a.grade != b.grade:
                total += 1
                right += (guess - other) * (a.grade - b.grade) > 0
    return right / total if total else float("nan")
