"""Attack a grader before a model does: what does cheating earn, beside honest answers?

    report = attack(task.grader, task.rows("train"), task.answer_template, task.worse_answers)
    print(report)             # every strategy, its mean reward, RED where cheating pays
    report.calibration        # do ordered answers come out in order?

A training run looks for whatever the grader pays for. A strategy here does on purpose what a run
would find by chance. Strategies know the task's answers as a set, and the prompt; those that hold
the row's own right answer hold it in a form that no honest reader would take (strategies.py).
"""

from __future__ import annotations

import html
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.records import Sample
from rftkit.graders.context import shorten
from rftkit.graders.core import Grader, row_id
from rftkit.graders.strategies import STRATEGIES, Material, Strategy
from rftkit.graders.templates import ITEM_FIELD, answer_place, fill_template, render_value

EPSILON = 1e-9  # rounding in a formula is no difference


@dataclass
class Calibration:
    """Do ordered answers (best > … > worst) come out in order?

    status    "passed", "failed" or "not checked" (there are no worse answers to order)
    levels    {"best": mean reward, "worse 1": …}, best first, over the rows that have all grades
    failures  for each row out of order {"row_id", "rewards"}; level rewards are out of order too
    """

    status: str
    levels: dict[str, float] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        if self.status == "not checked":
            return "calibration: not checked (no worse_answers, or no rows)"
        means = " > ".join(f"{name} {mean:.2f}" for name, mean in self.levels.items())
        if self.passed:
            return f"calibration: passed on {self.rows} rows ({means})"
        shown = "\n".join(
            f"  row {f['row_id']}: {', '.join(_shown(r) for r in f['rewards'])}"
            for f in self.failures[:5]
        )
        return (
            f"calibration: failed on {len(self.failures)} of {self.rows} rows, whose ordered "
            f"answers do not score in order: mend the grader, or worse_answers\n{shown}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Result:
    """What one strategy earns.

    mean     mean reward over the rows that have a grade; None if none has, or if the strategy
             applies to no row
    limit    what it should not exceed: the honest middle, or for a strategy that gives the right
             answer in its right place, the honest best
    red      it does; or it earns as much as the honest best, which no cheat should
    share    of the rows, where it earns more than that row's own limit
    lost     rows without a grade (the grader itself failed)
    example  the first row's answer, where there is one
    """

    name: str
    about: str
    mean: float | None
    limit: float
    red: bool
    share: float
    lost: int
    example: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class AttackReport:
    """results, best paid first; honest {"best", "middle", "worst"}: mean rewards."""

    grader: str
    rows: int
    honest: dict[str, float]
    results: list[Result]
    calibration: Calibration
    note: str = ""

    @property
    def red(self) -> list[str]:
        """The strategies that pay more than they should."""
        return [result.name for result in self.results if result.red]

    def __str__(self) -> str:
        lines = [f"{self.grader} on {self.rows} rows", f"{'':4}{'strategy':24} reward  of rows"]
        entries = [(name, mean, "honest", "") for name, mean in self.honest.items()]
        for r in self.results:
            share = f"{r.share:7.0%}" if r.mean is not None else ""
            lost = f"  ({r.lost} without a grade)" if r.lost else ""
            entries.append((r.name, r.mean, "RED" if r.red else "", share + lost))
        for name, mean, mark, more in sorted(entries, key=lambda e: -_order(e[1])):
            name = f"honest {name}" if mark == "honest" else name
            lines.append(f"{mark if mark == 'RED' else '':4}{name:24} {_shown(mean):>6} {more}")
        return "\n".join([*lines, *filter(None, [self.note]), str(self.calibration)])

    def _repr_html_(self) -> str:
        rows = []
        for name, mean in self.honest.items():
            rows.append((mean, f"<b>honest {name}</b>", "", "background:#e8eef7"))
        for r in self.results:
            name, example = html.escape(r.name), html.escape(shorten(r.example, 60))
            rows.append((r.mean, name, example, "background:#f6c9c4" if r.red else ""))
        rows.sort(key=lambda row: -_order(row[0]))
        body = "".join(
            f'<tr style="{style}"><td style="text-align:left">{name}</td><td>{_shown(mean)}</td>'
            f'<td style="text-align:left"><code>{example}</code></td></tr>'
            for mean, name, example, style in rows
        )
        head = "<tr><th>strategy</th><th>reward</th><th>an answer</th></tr>"
        below = html.escape("\n".join(filter(None, [self.note, str(self.calibration)])))
        return f"<table>{head}{body}</table><pre>{below}</pre>"

    def to_json(self) -> dict[str, Any]:
        return {
            "grader": self.grader,
            "rows": self.rows,
            "honest": self.honest,
            "red": self.red,
            "strategies": [result.to_json() for result in self.results],
            "calibration": self.calibration.to_json(),
            "note": self.note,
        }


def attack(
    grader: Grader,
    rows: Sequence[dict[str, Any]],
    answer_template: Any,
    worse_answers: Sequence[Any] = (),
    *,
    strategies: Sequence[Strategy] = STRATEGIES,
    seed: int = 0,
) -> AttackReport:
    """Grade every cheating strategy on every row, beside the honest answers.

    answer_template  how a row's answer fields become the best output (task.json's)
    worse_answers    templates of worse outputs, better ones first; the middle one of all is the
                     honest middle, the last the honest worst
    strategies       by default all of STRATEGIES
    Under a grader that gives an honest middle nothing (right or wrong, no partial credit) a lucky
    guess already beats the middle, and is red: `share` says on how many rows.
    Without two worse answers the middle is halfway between best and worst (worst: an empty
    output, where there is none), and the report says so.

    A judge is asked once for each strategy, level and row: two dozen rows are enough for it.
    Raises UserError without rows or template, or if not even an honest answer gets a grade.
    """
    if answer_template is None or not rows:
        what = "rows" if answer_template is not None else "answer_template"
        raise UserError(
            f"attack: no {what}, expected rows and an answer_template: without them nobody can "
            f"say what an honest answer earns"
        )
    rows = list(rows)
    levels = _honest_levels(rows, answer_template, worse_answers)
    graded = [_rewards(grader, rows, _samples(level)) for level in levels]
    honest, note = _honest_rewards(graded, grader, rows)
    means = {name: _mean(rewards) for name, rewards in honest.items()}
    if any(mean is None for mean in means.values()):
        reasons = grader.report(rows[0], levels[0][0]).explanations
        raise UserError(
            f"attack: grader {grader.name!r} has no grade for honest answers "
            f"({'; '.join(reasons) or 'no reason given'}): mend that first"
        )
    material = _gather(rows, levels, answer_template, seed)
    results = []
    for strategy in strategies:
        answers = {number: strategy.answer(one) for number, one in enumerate(material)}
        answers = {number: answer for number, answer in answers.items() if answer is not None}
        rewards = _rewards(grader, [rows[number] for number in answers], list(answers.values()))
        results.append(_judge(strategy, answers, rewards, means, honest))
    results.sort(key=lambda result: -_order(result.mean))
    calibration = _calibration(rows, graded)
    return AttackReport(grader.name, len(rows), means, results, calibration, note)


def calibrate(
    grader: Grader,
    rows: Sequence[dict[str, Any]],
    answer_template: Any,
    worse_answers: Sequence[Any],
) -> Calibration:
    """Grade each row's ordered answers: the template's first, then the worse ones, in order."""
    if answer_template is None or not worse_answers or not rows:
        return Calibration("not checked")
    levels = _honest_levels(rows, answer_template, worse_answers)
    return _calibration(rows, [_rewards(grader, rows, _samples(level)) for level in levels])


def _calibration(
    rows: Sequence[dict[str, Any]], graded: Sequence[Sequence[float | None]]
) -> Calibration:
    if len(graded) < 2:
        return Calibration("not checked")
    failures = []
    complete = [rewards for rewards in zip(*graded) if None not in rewards]
    for number, (row, rewards) in enumerate(zip(rows, zip(*graded)), start=1):
        falling = None not in rewards and all(
            better > worse + EPSILON for better, worse in zip(rewards, rewards[1:])
        )
        if not falling:
            failures.append({"row_id": row_id(row, number), "rewards": list(rewards)})
    names = ["best", *(f"worse {i}" for i in range(1, len(graded)))]
    means = {name: sum(r) / len(r) for name, r in zip(names, zip(*complete))}
    return Calibration("failed" if failures else "passed", means, failures, len(rows))


def _honest_levels(
    rows: Sequence[dict[str, Any]], answer_template: Any, worse_answers: Sequence[Any]
) -> list[list[str]]:
    """For each level, best first, the output of every row."""
    return [[fill_template(t, row) for row in rows] for t in (answer_template, *worse_answers)]


def _samples(outputs: Sequence[str]) -> list[Sample]:
    return [Sample(output_text=output) for output in outputs]


def _rewards(
    grader: Grader, rows: Sequence[dict[str, Any]], samples: Sequence[Sample]
) -> list[float | None]:
    return [grade.reward for grade in grader.evaluate_many(list(rows), list(samples))]


def _honest_rewards(
    graded: list[list[float | None]], grader: Grader, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, list[float | None]], str]:
    """The rewards of {"best", "middle", "worst"} for each row, and what was put in their place."""
    best = graded[0]
    if len(graded) > 2:
        return {"best": best, "middle": graded[len(graded) // 2], "worst": graded[-1]}, ""
    if len(graded) == 2:
        worst, note = graded[1], "one worse answer only: the middle is halfway to it"
    else:
        worst = _rewards(grader, rows, [Sample() for _ in rows])
        note = "no worse_answers: the worst is an empty output, the middle halfway to it"
    middle = [None if None in pair else sum(pair) / 2 for pair in zip(best, worst)]
    return {"best": best, "middle": middle, "worst": worst}, note


def _gather(
    rows: Sequence[dict[str, Any]], levels: list[list[str]], template: Any, seed: int
) -> list[Material]:
    """What the strategies may use, row by row."""
    text = template if isinstance(template, str) else render_value(template)
    found = ITEM_FIELD.search(text)
    path, answer_field = answer_place(text) or ([], found.group(1) if found else None)
    right = [render_value(row[answer_field]) if answer_field else "" for row in rows]
    counts: dict[str, int] = {}
    for answer in right:
        counts[answer] = counts.get(answer, 0) + 1
    pool = sorted(counts, key=lambda answer: (-counts[answer], answer))
    shuffled = random.Random(seed).sample(pool, len(pool))
    middle = levels[len(levels) // 2]
    return [
        Material(
            row=row,
            right=right[number],
            best=levels[0][number],
            middle=middle[number] if len(levels) > 1 else "",
            worst=levels[-1][number] if len(levels) > 1 else "",
            popular=pool[0],
            pool=shuffled,
            path=path,
            # Another row's honest output lends its form, so that nothing of this row is told.
            form=levels[0][(number + 1) % len(rows)],
            form_right=right[(number + 1) % len(rows)],
        )
        for number, row in enumerate(rows)
    ]


def _judge(
    strategy: Strategy,
    answers: dict[int, Sample],
    rewards: list[float | None],
    means: dict[str, float],
    honest: dict[str, list[float | None]],
) -> Result:
    """answers: the rows' numbers and what was said there; rewards: in the same order."""
    mean, limit = _mean(rewards), means[strategy.limit]
    own = [honest[strategy.limit][number] for number in answers]
    beaten = [r > o + EPSILON for r, o in zip(rewards, own) if r is not None and o is not None]
    above = mean is not None and mean > limit + EPSILON
    told_apart = means["best"] > means["worst"] + EPSILON
    as_best = told_apart and mean is not None and mean >= means["best"] - EPSILON
    return Result(
        strategy.name,
        strategy.about,
        mean,
        limit,
        red=above or (as_best and strategy.limit != "best"),
        share=sum(beaten) / len(beaten) if beaten else 0.0,
        lost=sum(reward is None for reward in rewards),
        example=next((answer.output_text for answer in answers.values()), ""),
    )


def _mean(rewards: Sequence[float | None]) -> float | None:
    known = [reward for reward in rewards if reward is not None]
    return sum(known) / len(known) if known else None


def _order(mean: float | None) -> float:
    return float("-inf") if mean is None else mean


def _shown(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.2f}"
