"""What shows without drawing an answer: is the question read, and is a right answer recognised?

The right answer of a row must score the maximum. The right answer of ANOTHER row has the same form
and must score less. And something in the grader must compare the answer with the row.
"""

import re
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit.attacks import Check, filled, reference_check
from rftkit.decoding import end_tokens
from rftkit.files import UserError
from rftkit.graders.answer import fill_template
from rftkit.policy import OWN_TEMPLATE, LocalPolicy, Prompt
from rftkit.records import Sample
from rftkit.rows import Row, messages_text
from rftkit.task import Task

MARKER = re.compile(r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>")
QUESTION, ANSWER = "Rftkit asks.", "Rftkit answers."  # what the template is tried on
WORD = re.compile(r"[^\W\d_]{3,}")
MANY_UNKNOWN = 0.3  # ours: share of words; of the gene task's prompts 0 are unknown to the mini
SAME = 0.05  # of the maximum: right and swapped answers this close count as equal
RULES = {"string_check", "python", "function"}  # right or wrong, by a rule
FREE_TEXT = 12  # words: from here on one reference stands for many equally good answers
MADE_UP = ("Rftkit answers.", '{"answer": "Rftkit answers."}', "7")  # right for no task


def check_template(policy: LocalPolicy, rows: Sequence[Row]) -> list[str]:
    """What is wrong with the prompts that the chat template makes of the rows' messages."""
    try:
        for row in rows:
            policy.render(Prompt(row))
    except UserError as error:
        return [str(error).removesuffix(OWN_TEMPLATE)]
    # A text of ours in place of the user's: what a user wrote is no marker.
    messages = [message | {"content": QUESTION} for message in rows[0]["messages"]]
    prompt, written = policy.render(messages), _rendered(policy, messages, "assistant")
    own, faults = set(policy.tokenizer.get_added_vocab()), []
    markers = dict.fromkeys(MARKER.findall(prompt))
    # A model whose tokenizer has no markers was trained on markers in pieces.
    if markers and own.isdisjoint(markers) and any(map(MARKER.fullmatch, own)):
        faults.append(f"{', '.join(markers)}: no tokens of this tokenizer")
    opening, answer, _ = written.partition(ANSWER)
    if answer and written != _rendered(policy, messages, "user"):  # it writes more than questions
        faults += check_opening(policy, messages, prompt.rstrip(), opening.rstrip())
    return faults


def check_opening(policy: LocalPolicy, messages: list[Row], prompt: str, opening: str) -> list[str]:
    """Does the prompt end where an answer begins? `opening` is all that stands before an answer."""
    tokenizer = policy.tokenizer
    unprompted = policy.apply_template(messages, add_generation_prompt=False).rstrip()
    ends = end_tokens(policy.model, tokenizer)
    ids = tokenizer([prompt, opening], add_special_tokens=False).input_ids
    over, expected_over = (bool(ends.intersection(text[-1:])) for text in ids)
    # Where one continues the other (a <think> that is opened, a channel) both are sound.
    continued = prompt.startswith(opening) or opening.startswith(prompt)
    no_turn = prompt == unprompted and prompt != opening
    if continued and not no_turn and (expected_over or not over):
        return []
    return [f"the prompt ends with {prompt[-30:]!r}, but an answer begins after {opening[-30:]!r}"]


def _rendered(policy: LocalPolicy, messages: list[Row], role: str) -> str:
    """The conversation that ends with ANSWER; "" where the template refuses to write it."""
    more = [*messages, {"role": role, "content": ANSWER}]
    try:
        return policy.apply_template(more, add_generation_prompt=False)
    except Exception:  # jinja's own errors
        return ""


def unended(policy: LocalPolicy, row: Row) -> str:
    """What closes an answer in the chat template and is no end token; "" where one is."""
    ends = end_tokens(policy.model, policy.tokenizer)
    closing = _rendered(policy, row["messages"], "assistant").partition(ANSWER)[2].strip()
    first = policy.tokenizer(closing, add_special_tokens=False).input_ids[:1]
    return "" if ends.intersection(first or ends) else closing or "nothing"


def prompt_notes(policy: LocalPolicy, rows: Sequence[Row]) -> list[str]:
    """What a user should know before this model reads these rows; UserError for tools it loses."""
    if any(row.get("tools") for row in rows):
        policy.render_all(Prompt(row) if row.get("tools") else "" for row in rows)
    renamed = any(policy.known_roles(row["messages"]) != row["messages"] for row in rows)
    share = unknown_words(policy.tokenizer, rows)
    notes = {
        'role "developer" is given as "system", for the chat template has no developer': renamed,
        f"{share:.0%} of the words are unknown to this model, which reads them letter by letter: "
        "take one that read general text, such as SmolLM2 or Qwen3": share > MANY_UNKNOWN,
    }
    return [note for note, applies in notes.items() if applies]


def unknown_words(tokenizer: Any, rows: Sequence[Row]) -> float:
    """The share of words whose tokens are shorter than two bytes on average: mostly letters."""
    unknown, texts = [], list(map(messages_text, rows[:64]))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    for text, spans in zip(texts, encoded.get("offset_mapping", ())):
        starts, ends = zip(*spans) if spans else ((), ())
        for word in WORD.finditer(text):
            tokens = bisect_left(starts, word.end()) - bisect_right(ends, word.start())
            unknown.append(len(word[0].encode()) < 2 * tokens)
    return statistics.fmean(unknown) if unknown else 0.0


@dataclass
class Reference:
    """What the grader gives to answers that are known to be right, and known to be wrong."""

    check: Check = field(default_factory=lambda: Check("reference check"))
    maximum: float = 1.0
    right: float | None = None  # mean reward of the rows' own right answers
    swapped: float | None = None  # of other rows' right answers; None where all rows have the same
    worse: list[float] = field(default_factory=list)  # of each of the task's worse_answers

    @property
    def inverted(self) -> bool:
        """Do answers that are known to be worse score more than the right ones?"""
        wrong = [reward for reward in (*self.worse, self.swapped) if reward is not None]
        return any(reward > self.right + 1e-9 for reward in wrong)

    @property
    def blind(self) -> bool:
        """Does another row's answer earn what the row's own does?"""
        return self.swapped is not None and abs(self.right - self.swapped) < SAME * self.maximum

    @property
    def sound(self) -> bool:
        """Does "the best grade" mean "right"?"""
        return self.check.status == "passed" and not self.blind and not self.inverted

    def __str__(self) -> str:
        scores = {"right answers score": self.right, "other rows' answers": self.swapped}
        scores |= {f"worse answer {i}": reward for i, reward in enumerate(self.worse, 1)}
        return ", ".join(f"{name} {mean:.2f}" for name, mean in scores.items() if mean is not None)

    def to_json(self) -> dict[str, Any]:
        known = {"status": self.check.status, "failures": len(self.check.failures)}
        scores = {"right": self.right, "swapped": self.swapped, "worse": self.worse}
        return known | {"maximum": self.maximum} | scores


def check_reference(task: Task, rows: Sequence[Row], drawn: Sequence[Row]) -> Reference:
    """Grade answers that are known to be right or wrong, on the rows that the gate draws; all rows
    get the reference check, unless the grader asks a model or starts a sandbox."""

    def mean_reward(answers: list[str]) -> float:  # a lost grade counts as 0
        grades = grader.evaluate_many(drawn, [Sample(output_text=answer) for answer in answers])
        return statistics.fmean(grade.reward or 0.0 for grade in grades)

    grader = task.grader
    check = reference_check(grader, task.answer_template, drawn if grader.workers > 1 else rows)
    result = Reference(check, grader.maximum)
    right = [filled(task.answer_template, row)[0] for row in drawn]
    if not check.rows or None in right:
        return result
    result.right = mean_reward(right)
    swapped = []
    for i, own in enumerate(right):
        swapped += [answer for answer in right[i + 1 :] + right[:i] if answer != own][:1]
    if len(swapped) == len(right):
        result.swapped = mean_reward(swapped)
    for worse in task.worse_answers:
        result.worse.append(mean_reward([fill_template(worse, row) for row in drawn]))
    return result


def why_not_verifiable(task: Task, rows: Sequence[Row]) -> str | None:
    """Why no program can say that an answer to this task is right; None where one can."""
    kinds = {part["type"] for part in _parts(task) if reads_row(part)}
    if not kinds:
        return "no part of the grader reads the row: it cannot know what the right answer is"
    if kinds & RULES:
        return None
    if "text_similarity" in kinds:
        templates = [task.answer_template, *(part.get("reference") for part in _parts(task))]
        lengths = [len((filled(t, row)[0] or "").split()) for row in rows for t in templates if t]
        if (words := int(statistics.median(lengths))) >= FREE_TEXT:
            return f"answers are graded by likeness to a text of {words} words: wording, not truth"
    return None


def constant_reward(task: Task, rows: Sequence[Row]) -> float | None:
    """What a grader that never reads the row gives to right, worse and made-up answers alike;
    None where they differ, or all score 0, as another form does with a grader of form."""
    if any(reads_row(part) or part["type"].endswith("_model") for part in _parts(task)):
        return None
    known = [filled(t, rows[0])[0] for t in (task.answer_template, *task.worse_answers) if t]
    rewards = {task.grader.grade(rows[0], text)[0] for text in (*known, *MADE_UP) if text}
    return rewards.pop() or None if len(rewards) == 1 else None


def _parts(task: Task) -> list[dict[str, Any]]:
    """The graders that the task's grader consists of."""
    spec = task.grader.record
    return list(spec["graders"].values()) if spec["type"] == "multi" else [spec]


def reads_row(part: dict[str, Any]) -> bool:
    """Does this grader look at the row (the item), and not at the sample alone?"""
    if part.get("signature") in ("trl", "bedrock"):  # its parameters are the row
        return True
    if part["type"] not in ("python", "function"):
        return "item" in str({k: v for k, v in part.items() if k not in ("name", "type")})
    # Where its source uses the function's second argument, whatever that is called.
    name = "grade" if part["type"] == "python" else part["name"]
    argument = re.search(rf"\bdef {name}\(\s*\w+[^,)]*,\s*(\w+)", part["source"])
    return argument is None or len(re.findall(rf"\b{argument[1]}\b", part["source"])) > 1
