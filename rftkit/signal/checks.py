"""What shows without drawing an answer: is the question read, and is a right answer recognised?

The right answer of a row must score the maximum. The right answer of ANOTHER row has the same form
and must score less. And something in the grader must compare the answer with the row.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit.attacks import Check, reference_check
from rftkit.decoding import end_tokens
from rftkit.files import UserError
from rftkit.graders.answer import fill_template
from rftkit.policy import Policy
from rftkit.records import Sample
from rftkit.task import Task

Row = dict[str, Any]

# --- the chat template ---------------------------------------------------------------------------

MARKER = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
LAST_MARKER = re.compile(rf"({MARKER.pattern})\s*$")
QUESTION, ANSWER = "Rftkit asks.", "Rftkit answers."  # what the template is tried on
KNOWN = 0.01  # ours: a model trained on a marker in pieces finds one of them likelier than that


@dataclass
class TemplateCheck:
    """What the chat template makes of the task's prompts; nothing for an endpoint's."""

    faults: list[str] = field(default_factory=list)  # certain
    odd: list[str] = field(default_factory=list)  # a fault only where answers are garbage as well
    no_end: str | None = None  # how an answer closes, where generation does not stop there


def check_template(policy: Policy, rows: list[Row]) -> TemplateCheck:
    """Render the rows' prompts and read them."""
    check = TemplateCheck()
    if not hasattr(policy, "tokenizer"):  # an endpoint applies its own
        return check
    try:
        texts = [policy.render(row["messages"]) for row in rows]
    except Exception as error:  # jinja's own errors, a ValueError where there is no template
        check.faults.append(f"the chat template fails: {str(error)[:200]}")
        return check
    for row, text in zip(rows, texts):
        contents = [message.get("content") for message in row["messages"]]
        missing = [c for c in contents if isinstance(c, str) and c.strip() not in text]
        if missing:
            check.faults.append(f"the prompt {text[:120]!r} does not hold {missing[0][:60]!r}")
            return check
    # A text of ours in place of the user's: what a user wrote is no marker.
    messages = [message | {"content": QUESTION} for message in rows[0]["messages"]]
    check_markers(policy, messages, check)
    check_opening(policy, messages, check)
    closing = _rendered(policy, messages, "assistant").partition(ANSWER)[2]
    ends = end_tokens(policy.model, policy.tokenizer)
    if closing and not ends & set(_ids(policy, closing)):
        names = ", ".join(map(str, policy.tokenizer.convert_ids_to_tokens(sorted(ends))))
        check.no_end = f"an answer closes with {closing.strip()!r}, generation stops at {names}"
    return check


def check_markers(policy: Any, messages: list[Row], check: TemplateCheck) -> None:
    """Are the template's markers tokens, or known to the model in pieces?"""
    text, unknown = policy.render(messages), getattr(policy.tokenizer, "unk_token", None)
    for marker in dict.fromkeys(MARKER.findall(text)):
        pieces = _ids(policy, marker)
        lost = marker != unknown and unknown in policy.tokenizer.convert_ids_to_tokens(pieces)
        if len(pieces) == 1 and not lost:
            continue
        finding = f"{marker} is no token to this tokenizer but {len(pieces)} pieces"
        if lost or _best_piece(policy, text[: text.rindex(marker)], pieces) < KNOWN:
            check.faults.append(f"{finding} that the model does not know: a foreign template")
            return
        if marker.startswith("<"):  # models that are trained on [INST] read it in pieces
            check.odd.append(finding)


def _best_piece(policy: Any, before: str, pieces: list[int]) -> float:
    """The highest chance that the model gives to one of a marker's pieces after the first."""
    import torch

    ids = torch.tensor([[*_ids(policy, before), *pieces]])
    with torch.no_grad():
        device = next(policy.model.parameters()).device
        logits = policy.model(input_ids=ids.to(device)).logits[0, -len(pieces) : -1]
    return float(logits.float().softmax(-1)[range(len(pieces) - 1), pieces[1:]].max())


def check_opening(policy: Any, messages: list[Row], check: TemplateCheck) -> None:
    """Does the prompt end where the template begins an answer, and not after one?"""
    written = _rendered(policy, messages, "assistant")
    if ANSWER not in written or written == _rendered(policy, messages, "user"):
        return  # it writes questions alone
    prompt, opening = policy.render(messages), written.partition(ANSWER)[0]
    ends = f"the prompt ends with {prompt[-30:]!r}"
    without = policy.tokenizer.apply_chat_template(messages, tokenize=False)
    missing = opening.removeprefix(prompt).strip()
    if prompt == without and opening.startswith(prompt) and missing:
        check.faults.append(f"{ends}, but an answer begins with {missing!r}")
    # Where one continues the other (a <think> that is opened, a channel) both are sound.
    continued = prompt.startswith(opening) or opening.startswith(prompt)
    last, expected = LAST_MARKER.search(prompt), LAST_MARKER.search(opening)
    if last and expected and not continued and last[1] != expected[1]:
        check.faults.append(f"{ends}, but an answer begins after {expected[1]!r}")
    # An end token alone between question and answer is sound: it stands before written answers too.
    end_ids = end_tokens(policy.model, policy.tokenizer)
    tails = [set(_ids(policy, text.rstrip())[-1:]) for text in (prompt, opening)]
    if end_ids & tails[0] and not end_ids & tails[1]:
        check.faults.append(f"{ends}, which ends an answer: none is opened")


def _rendered(policy: Any, messages: list[Row], role: str) -> str:
    """The conversation that ends with ANSWER; "" where the template refuses to write it."""
    more = [*messages, {"role": role, "content": ANSWER}]
    try:
        return policy.tokenizer.apply_chat_template(more, tokenize=False)
    except Exception:  # jinja's own errors
        return ""


def _ids(policy: Any, text: str) -> list[int]:
    return policy.tokenizer(text, add_special_tokens=False).input_ids


# --- right and wrong answers ---------------------------------------------------------------------

SAME = 0.05  # of the maximum: right and swapped answers this close are not told apart


@dataclass
class Reference:
    """What the grader gives to answers that are known to be right, and known to be wrong."""

    check: Check
    maximum: float
    right: float | None = None  # mean reward of the rows' own right answers
    swapped: float | None = None  # of other rows' right answers; None where all rows have the same
    worse: list[float] = field(default_factory=list)  # of each of the task's worse_answers

    @property
    def misshapen(self) -> bool:
        """Is it only the form of answer_template that the grader cannot read? Then right and
        swapped answers earn the same, for a reason, and worse ones in the right form earn more."""
        if self.right is None or self.right != self.swapped or not self.check.failures:
            return False
        unread = self.right == 0 or all(failure["reason"] for failure in self.check.failures)
        return unread and any(reward > self.right + 1e-9 for reward in self.worse)

    @property
    def inverted(self) -> bool:
        """Do answers that are known to be worse score more than the right ones?"""
        wrong = [reward for reward in (*self.worse, self.swapped) if reward is not None]
        return not self.misshapen and any(reward > self.right + 1e-9 for reward in wrong)

    @property
    def blind(self) -> bool:
        """Does another row's answer earn what the row's own does?"""
        return self.swapped is not None and abs(self.right - self.swapped) < SAME * self.maximum

    @property
    def sound(self) -> bool:
        """Does "the best grade" mean "right"?"""
        return self.check.passed and not self.blind and not self.inverted

    def __str__(self) -> str:
        """ "right answers score 1.00, other rows' answers 0.10, worse_answers 0.73, 0.37"."""
        worse = ", ".join(f"{reward:.2f}" for reward in self.worse)
        parts = {"right answers score": self.right, "other rows' answers": self.swapped}
        known = [f"{name} {reward:.2f}" for name, reward in parts.items() if reward is not None]
        return ", ".join([*known, f"worse_answers {worse}"] if worse else known)

    def to_json(self) -> dict[str, Any]:
        known = {"status": self.check.status, "failures": len(self.check.failures)}
        return known | {"right": self.right, "swapped": self.swapped, "worse": self.worse}


NOT_CHECKED = Reference(Check("reference check", "not checked"), 1.0)


def check_reference(task: Task, rows: Sequence[Row], drawn: Sequence[Row]) -> Reference:
    """Grade answers that are known to be right or wrong.

    drawn   the rows that the gate draws; a grader that asks a model or starts a sandbox checks
            these alone, others all rows
    """
    grader = task.grader
    check = reference_check(grader, task.answer_template, drawn if grader.workers > 1 else rows)
    result = Reference(check, grader.maximum)
    right = [_filled(task.answer_template, row) for row in drawn]
    if check.status == "not checked" or None in right:
        return result
    result.right = _mean_reward(task, drawn, right)
    swapped = []
    for i, own in enumerate(right):
        swapped += [answer for answer in right[i + 1 :] + right[:i] if answer != own][:1]
    if len(swapped) == len(right):
        result.swapped = _mean_reward(task, drawn, swapped)
    for worse in task.worse_answers:
        answers = [fill_template(worse, row) for row in drawn]
        result.worse.append(_mean_reward(task, drawn, answers))
    return result


def _filled(template: Any, row: Row) -> str | None:
    """The template as a text for this row; None where it cannot be written."""
    try:
        return fill_template(template, row) if isinstance(template, str) else None
    except UserError:
        return None


def _mean_reward(task: Task, rows: Sequence[Row], answers: Sequence[str]) -> float:
    """Mean reward of these texts; a lost grade counts as 0."""
    samples = [Sample(output_text=answer) for answer in answers]
    grades = task.grader.evaluate_many(list(rows), samples)
    return statistics.fmean(grade.reward or 0.0 for grade in grades)


# --- is a right answer verifiable at all? --------------------------------------------------------

RULES = ("string_check", "python", "function")  # right or wrong, by a rule
FREE_TEXT = 12  # words: from here on one reference stands for many equally good answers
MADE_UP = ("Rftkit answers.", '{"answer": "Rftkit answers."}', "7")  # right for no task


def why_not_verifiable(task: Task, rows: Sequence[Row]) -> str | None:
    """Why no program can say that an answer to this task is right; None where one can.

    Likeness to a long text measures wording. An opinion proves nothing that no known answer tests.
    """
    kinds = {part["type"] for part in _parts(task) if reads_row(part)}
    if not kinds:
        return "no part of the grader reads the row: it cannot know what the right answer is"
    if kinds & set(RULES):
        return None
    if "text_similarity" in kinds:
        templates = [task.answer_template or part.get("reference") for part in _parts(task)]
        texts = [[_filled(template, row) or "" for template in templates] for row in rows]
        words = int(statistics.median(max(len(text.split()) for text in row) for row in texts))
        if words < FREE_TEXT:
            return None
        return f"answers are graded by likeness to a text of {words} words: wording, not truth"
    if task.answer_template:
        return None
    return f"an opinion ({', '.join(sorted(kinds))}), without an answer_template to test it on"


def constant_reward(task: Task, rows: Sequence[Row]) -> float | None:
    """What a grader that never reads the row gives to right, worse and made-up answers alike.

    None where they differ, or all score 0, as another form does with a grader of form.
    """
    if any(reads_row(part) or part["type"].endswith("_model") for part in _parts(task)):
        return None
    templates = (task.answer_template, *task.worse_answers, *MADE_UP)
    texts = [_filled(template, row) for row in rows[:4] for template in templates]
    rewards = {task.grader.grade(rows[0], text)[0] for text in texts if text}
    return rewards.pop() or None if len(rewards) == 1 else None


def _parts(task: Task) -> list[dict[str, Any]]:
    """The graders that the task's grader consists of (a multi's may stand in a list)."""
    spec = task.grader_spec
    parts = spec["graders"] if spec["type"] == "multi" else [spec]
    return list(parts.values()) if isinstance(parts, dict) else list(parts)


def reads_row(part: dict[str, Any]) -> bool:
    """Does this grader look at the row (the item), and not at the sample alone?

    A python grader does where its source uses grade's second argument, whatever that is called.
    """
    if part["type"] != "python":
        return "item" in str({k: v for k, v in part.items() if k not in ("name", "type")})
    source = part["source"]
    argument = re.search(r"\bdef grade\(\s*\w+[^,)]*,\s*(\w+)", source)
    return argument is None or len(re.findall(rf"\b{argument[1]}\b", source)) > 1
