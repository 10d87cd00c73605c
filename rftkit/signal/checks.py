"""What can be seen without a single sample: does the grader know right from wrong, and could it?

The right answer of a row must score the maximum; the right answer of ANOTHER row, which has the
same form, must score less. And something in the grader must compare the answer with the row.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit.attacks import Check, reference_check
from rftkit.files import UserError
from rftkit.graders.answer import PROGRAM_FAILED, fill_template
from rftkit.policy import Policy, end_tokens
from rftkit.records import Sample
from rftkit.task import Task

# ------------------------------------------------------------------------------------------
# from rftkit.signal.template:
# Does the model read what we think it reads? The chat template and the end token, looked at.
#
# Looks at the rendered text, and asks the model itself about markers that are no tokens. What is
# certain (the question is not in it, the answer is not opened) is a fault by itself; what is
# only odd
# (a marker in letters that the model may know: some are trained so) becomes one where the
# answers are
# garbage as well.

MARKER = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
LAST_MARKER = re.compile(rf"({MARKER.pattern})\s*$")
QUESTION, ANSWER = "Rftkit asks.", "Rftkit answers."  # what the template is tried on
KNOWN = 0.01  # ours: who has ever read `<|user|>` in pieces finds one of them likelier than that


@dataclass
class TemplateLook:
    """faults: certain; odd: each a sentence; no_end: how an answer's end is not seen, or None.

    checked   False for a policy that renders elsewhere (an endpoint)
    """

    checked: bool = False
    faults: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    no_end: str | None = None


def look_at_template(policy: Policy, rows: list[dict[str, Any]]) -> TemplateLook:
    """Render the rows' prompts and read them."""
    tokenizer, render = getattr(policy, "tokenizer", None), getattr(policy, "render", None)
    if tokenizer is None or render is None:
        return TemplateLook()
    look = TemplateLook(checked=True)
    try:
        texts = [render(row["messages"]) for row in rows]
    except Exception as error:  # jinja's own errors, a ValueError where there is no template
        reason = str(error).strip().splitlines() or [type(error).__name__]
        look.faults.append(f"the chat template cannot be used: {reason[0][:200]}")
        return look
    for row, text in zip(rows, texts):
        missing = [str(m["content"]) for m in row["messages"] if said(m) not in text]
        if missing:
            look.faults.append(
                f"the prompt that the model reads does not hold {missing[0][:60]!r}: it reads "
                f"{text[:120]!r}"
            )
            break
    messages = [message | {"content": QUESTION} for message in rows[0]["messages"]]
    look_at_markers(policy, messages, look)
    look_at_opening(policy, messages, look)
    look.no_end = unseen_end(policy, messages)
    return look


def said(message: dict[str, Any]) -> str:
    """A message's text without blanks around it, which templates may strip."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def look_at_markers(policy: Any, messages: list[dict[str, Any]], look: TemplateLook) -> None:
    """Markers of the template that are no tokens: was it written for another model?

    messages   with a text of ours in them: what a user wrote is no marker, whatever it looks like
    """
    tokenizer, text = policy.tokenizer, policy.render(messages)
    for marker in dict.fromkeys(MARKER.findall(text)):
        pieces = tokenizer(marker, add_special_tokens=False).input_ids
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in pieces and marker != tokenizer.unk_token:
            look.faults.append(
                f"the template writes {marker}, which this tokenizer does not know: the model "
                f"reads {tokenizer.unk_token} instead"
            )
        if len(pieces) < 2 or look.faults:
            continue
        told = f"{marker} is no token but {len(pieces)} pieces to this tokenizer"
        chance = best_piece(policy, text[: text.rindex(marker)], pieces)
        if chance is not None and chance < KNOWN:
            look.faults.append(
                f"{told}, and the model does not know them (having read the pieces before it, the "
                f"likeliest has a chance of {chance:.1g}): it was written for another model"
            )
        elif marker.startswith("<"):  # [INST] is no token to the models that are trained on it
            look.odd.append(told)


def best_piece(policy: Any, before: str, pieces: list[int]) -> float | None:
    """The highest chance that the model gives to one of a marker's pieces after the first, having
    read what stands before them; None where there is no model to ask."""
    parameters = getattr(getattr(policy, "model", None), "parameters", None)
    if parameters is None:
        return None
    import torch

    ids = [*policy.tokenizer(before, add_special_tokens=False).input_ids, *pieces]
    with torch.no_grad():
        read = torch.tensor([ids], device=next(parameters()).device)
        logits = policy.model(input_ids=read).logits[0, -len(pieces) : -1]
    chances = logits.float().softmax(-1)[range(len(pieces) - 1), pieces[1:]]
    return float(chances.max())


def look_at_opening(policy: Any, messages: list[dict[str, Any]], look: TemplateLook) -> None:
    """Does the prompt end where the template begins an answer, and not after one?

    A template that puts nothing between question and answer but an end token is sound: then the
    end token stands before a written answer, too.
    """
    talk = with_message(policy, messages, "assistant")
    if ANSWER not in talk or talk == with_message(policy, messages, "user"):
        return  # it writes questions alone
    prompt, opening = policy.render(messages), talk.partition(ANSWER)[0]
    missing = opening.removeprefix(prompt).strip()
    plain = policy.tokenizer.apply_chat_template(messages, tokenize=False)
    if prompt == plain and opening.startswith(prompt) and missing:
        look.faults.append(
            f"the template begins an answer with {missing!r}, but the prompt for a new one ends "
            f"without it, in {prompt[-30:]!r}: it ignores add_generation_prompt"
        )
    # Where one goes on after the other (a <think> that is opened, a channel) both are sound.
    markers = [LAST_MARKER.search(text) for text in (prompt, opening)]
    if all(markers) and not (prompt.startswith(opening) or opening.startswith(prompt)):
        told, meant = (found[1] for found in markers)
        if told != meant:
            look.faults.append(
                f"the prompt for a new answer ends with {told!r}, but the template begins an "
                f"answer with {meant!r}"
            )
    ends = end_tokens(policy.model, policy.tokenizer)
    last, before = (last_token(policy.tokenizer, text) for text in (prompt, opening))
    if last in ends and before not in ends:
        look.faults.append(
            f"the prompt ends with {policy.tokenizer.convert_ids_to_tokens(last)}, which ends an "
            f"answer: the model is asked to go on after its turn is over ({prompt[-30:]!r})"
        )


def last_token(tokenizer: Any, text: str) -> int | None:
    """The token that a text ends with, blanks aside."""
    ids = tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    return ids[-1] if ids else None


def with_message(policy: Any, messages: list[dict[str, Any]], role: str) -> str:
    """The talk with ANSWER as its last message; "" where the template refuses to write it (it is
    read for prompts only) or the talk ends with an answer anyway."""
    if messages[-1].get("role") == "assistant":
        return ""
    try:
        return policy.tokenizer.apply_chat_template(
            [*messages, {"role": role, "content": ANSWER}], tokenize=False
        )
    except Exception:  # jinja's own errors
        return ""


def unseen_end(policy: Any, messages: list[dict[str, Any]]) -> str | None:
    """How the template closes an answer, if generation would not stop there."""
    tokenizer = policy.tokenizer
    closing = with_message(policy, messages, "assistant").partition(ANSWER)[2]
    closing_ids = tokenizer(closing, add_special_tokens=False).input_ids
    ends = end_tokens(policy.model, tokenizer)
    if not closing_ids or ends & set(closing_ids):
        return None
    names = ", ".join(str(t) for t in tokenizer.convert_ids_to_tokens(sorted(ends)))
    return f"the template closes an answer with {closing.strip()!r}, generation stops at {names}"


# ------------------------------------------------------------------------------------------
# from rftkit.signal.task_checks:
# What can be seen without a single sample: does the grader know right from wrong, and could it?
#
# The right answer of a row must score the maximum; the right answer of ANOTHER row, which has the
# same form, must score less. And something in the grader must compare the answer with the row.

CHECKS = ("string_check", "python", "function")  # right or wrong, by a rule
OPINIONS = ("score_model", "label_model")  # right or wrong, as another model sees it
FREE_TEXT = 12  # words: from here on one reference stands for many equally good answers
MADE_UP = ("Rftkit answers.", '{"answer": "Rftkit answers."}', "7")  # right for no task
MADE_FROM = 4  # rows
SAME = 0.05  # of the maximum: right and swapped answers this close are not told apart


@dataclass
class Reference:
    """What the grader says about answers that are known to be right, and known to be wrong.

    check         the reference check over the rows
    right         mean reward of the rows' own reference answers; None where none can be written
    swapped       mean reward of other rows' reference answers; None where all rows have the same
    worse         mean reward of each of the task's worse_answers
    maximum       the best grade there is
    """

    check: Check
    right: float | None = None
    swapped: float | None = None
    worse: list[float] = field(default_factory=list)
    maximum: float = 1.0

    @property
    def inverted(self) -> bool:
        """Do answers that are known to be worse score more than the right ones?"""
        if self.right is None or self.misshapen:
            return False
        wrong = [*self.worse] + ([] if self.swapped is None else [self.swapped])
        return any(reward > self.right + 1e-9 for reward in wrong)

    @property
    def misshapen(self) -> bool:
        """Is it only the form of the answer_template that the grader cannot read?

        Then a right answer earns exactly what another row's answer in that form does: nothing (or
        no more than a part of the grader gives that found nothing to read), while worse_answers,
        which have the right form, earn more. An inverted grader tells the two apart.
        """
        if self.right is None or self.right != self.swapped or not self.check.failures:
            return False
        unread = self.right == 0 or all(failure["reason"] for failure in self.check.failures)
        return unread and any(reward > self.right + 1e-9 for reward in self.worse)

    @property
    def blind(self) -> bool:
        """Does another row's answer earn what the row's own does?"""
        if self.right is None or self.swapped is None:
            return False
        return abs(self.right - self.swapped) < SAME * self.maximum

    @property
    def sound(self) -> bool:
        """Right answers score the maximum, swapped ones less: "best grade" means "right"."""
        return self.check.passed and not self.blind and not self.inverted

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.check.status,
            "right": self.right,
            "swapped": self.swapped,
            "worse": self.worse,
            "failures": len(self.check.failures),
        }


def check_reference(task: Task, rows: Sequence[dict[str, Any]], drawn: list[int]) -> Reference:
    """Grade answers that are known to be right or wrong.

    drawn   numbers of the rows that the gate draws: graders that ask a model or start a sandbox
            are checked on these alone, the others on all rows
    """
    grader, template = task.grader, task.answer_template
    some = [rows[i] for i in drawn]
    checked = some if grader.workers > 1 else list(rows)
    result = Reference(reference_check(grader, template, checked), maximum=grader.maximum)
    answers = [reference_answer(task, row) for row in some]
    if result.check.status == "not checked" or None in answers:
        return result
    result.right = mean_reward(task, some, answers)
    partners = [other_answer(answers, i) for i in range(len(answers))]
    if None not in partners:
        result.swapped = mean_reward(task, some, partners)
    for worse in task.worse_answers:
        result.worse.append(mean_reward(task, some, [fill_template(worse, r) for r in some]))
    return result


def reference_answer(task: Task, row: dict[str, Any]) -> str | None:
    """The row's right answer as a model would write it; None where it cannot be written."""
    if task.answer_template is None:
        return None
    try:
        return fill_template(task.answer_template, row)
    except UserError:
        return None


def other_answer(answers: Sequence[str], number: int) -> str | None:
    """The next answer in the list that differs from this one's; None where all are the same."""
    turned = [*answers[number + 1 :], *answers[:number]]
    return next((answer for answer in turned if answer != answers[number]), None)


def mean_reward(task: Task, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> float:
    """Mean reward of these texts; an answer whose grade is lost counts as 0."""
    samples = [Sample(output_text=answer) for answer in answers]
    grades = task.grader.evaluate_many(list(rows), samples)
    return statistics.fmean(grade.reward or 0.0 for grade in grades)


def why_constant(task: Task, rows: Sequence[dict[str, Any]]) -> str | None:
    """What shows that the grader gives every answer the same, for one that never reads the row.

    Nothing is drawn: right answers, worse_answers and some made-up texts are graded instead. None
    where they differ, or where it cannot be told: the grader asks a model, cannot run here or
    fails; or no answer is known right and all score 0, as any other form does with a form grader.
    """
    parts = grader_parts(task.grader_spec)
    if any(reads_row(part) or part["type"] in OPINIONS for part in parts):
        return None
    some = list(rows[:MADE_FROM])
    right = [answer for row in some if (answer := reference_answer(task, row))]
    worse = [fill_quietly(worse, row) for row in some for worse in task.worse_answers]
    texts = list(dict.fromkeys([*right, *filter(None, worse), *MADE_UP]))
    try:
        task.grader.check_ready()
    except UserError:
        return None
    samples = [Sample(output_text=text) for text in texts]
    grades = task.grader.evaluate_many([some[0]] * len(texts), samples)
    rewards = [grade.reward for grade in grades]
    if any(PROGRAM_FAILED in grade.errors for grade in grades):
        return None
    if len(set(rewards)) > 1 or rewards[0] is None or not (right or rewards[0]):
        return None
    kinds = "right, worse and made-up" if right else "made-up"
    return f"{len(texts)} {kinds} answers, {texts[0][:40]!r} among them, all score {rewards[0]:.2f}"


# --- is the answer verifiable at all? ------------------------------------------------------------


def grader_parts(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The graders that a grader's JSON consists of (a multi's may stand in a list)."""
    if spec["type"] != "multi":
        return [spec]
    parts = spec["graders"]
    return list(parts.values()) if isinstance(parts, dict) else list(parts)


def reads_row(part: dict[str, Any]) -> bool:
    """Does this grader look at the row (the item), and not at the sample alone?"""
    if part["type"] == "python":
        return uses_second_argument(part["source"])
    texts = {key: value for key, value in part.items() if key not in ("name", "type")}
    return "item" in str(texts)


def uses_second_argument(source: str) -> bool:
    """Does a python grader's `grade` use what it is given second: the row, under any name?

    A text that cannot be read, or that binds `grade` in another way than by a def with two
    arguments, counts as using it: what cannot be seen is no ground to refuse a task.

    >>> uses_second_argument("def grade(sample, row):\\n    return row['n'] > 0")
    True
    >>> uses_second_argument("def grade(sample, item):\\n    return 1.0")
    False
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    grades = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
    if not grades:
        return True
    arguments = [*grades[-1].args.posonlyargs, *grades[-1].args.args]
    if len(arguments) != 2:
        return True
    # locals() and the like reach every argument without its name.
    reached = {arguments[1].arg, "locals", "vars", "eval", "exec"}
    inside = (node for statement in grades[-1].body for node in ast.walk(statement))
    return any(isinstance(node, ast.Name) and node.id in reached for node in inside)


def why_not_verifiable(task: Task, rows: Sequence[dict[str, Any]]) -> str | None:
    """Why no program can say that an answer to this task is right; None where one can.

    A rule that reads the row can (string_check, python). Likeness to a reference can where the
    reference is short: a name. Likeness to a long text only measures wording, and an opinion that
    no known answer can be held against proves nothing.
    """
    kinds = [part["type"] for part in grader_parts(task.grader_spec) if reads_row(part)]
    if any(kind in CHECKS for kind in kinds):
        return None
    if "text_similarity" in kinds:
        words = reference_words(task, rows)
        if words is not None and words >= FREE_TEXT:
            return (
                f"answers are graded by likeness to one reference of {words} words (median): a "
                "good answer in other words scores low, and one that copies the style of the "
                "references scores high"
            )
        return None
    if not kinds:
        return "no part of the grader reads the row: it cannot know what the right answer is"
    if task.answer_template is None:
        return (
            f"the grade is the opinion of another model ({', '.join(sorted(set(kinds)))}), and "
            "without an answer_template no answer is known to be right that it could be tested on"
        )
    return None


def reference_words(task: Task, rows: Sequence[dict[str, Any]]) -> int | None:
    """The median number of words of what answers are compared with."""
    lengths = []
    for row in rows:
        texts = [reference_answer(task, row)]
        if texts[0] is None:
            parts = grader_parts(task.grader_spec)
            texts = [fill_quietly(part.get("reference"), row) for part in parts]
        lengths.append(max((len(text.split()) for text in texts if text), default=0))
    return int(statistics.median(lengths)) if lengths else None


def fill_quietly(template: Any, row: dict[str, Any]) -> str | None:
    """A grader's `reference` for a row; None where it is none or cannot be filled."""
    try:
        return fill_template(template, row) if isinstance(template, str) else None
    except UserError:
        return None
