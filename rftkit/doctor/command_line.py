"""`rftkit doctor`: a log's findings as text that teaches, or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from rftkit.doctor.examination import Examination, examine

HEALTHY, FINDINGS = 0, 1


def doctor_command(
    log: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_LOG", help="A run folder, log.jsonl or trainer_state.json."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """What is wrong with a run: each finding with its steps, its evidence and the knob to turn.

    Reads our own log.jsonl and the trainer_state.json that TRL and Unsloth leave in a checkpoint
    folder: dead groups, a reward without spread, truncation, entropy and KL, gradients, a grader
    that fails, a reward that rises while the held-out metric falls, and what else a log can tell.

    Limits are those of Axolotl's guide "Training Stability & Debugging": groups without spread
    below 0.8, cut answers to 0.3, clipped tokens to 0.1, KL to 0.5, entropy from 0.05 nats a token,
    gradient norm from 0.001. A limit counts as passed where 5 of 8 steps are beyond it; a KL above
    5, and a gradient spike, count at once. Two differ from the guide's healthy ranges. Gradient
    norm: 1 to 10 is let pass unless it is ten times the run's median, for 10 is the guide's own red
    flag. Entropy: no upper limit, though the guide's red flag is 1.0. A model with a small
    vocabulary that is trained on many ways to think starts higher and learns: our recorded demo
    runs start at 1.0 to 1.2 and end at 0.6 to 0.7, with a gain (measured:
    datasets/recorded_runs/demo.json).

    Example: `rftkit doctor runs/first`, `rftkit doctor outputs/checkpoint-100/trainer_state.json`

    Exit code 0: no finding. 1: findings, or a log that cannot be read.
    """
    found = examine(log)
    if as_json:
        text = json.dumps(found.to_json(), ensure_ascii=False, indent=2, allow_nan=False)
    else:
        text = as_text(found)
    typer.echo(text)
    raise typer.Exit(FINDINGS if found.findings else HEALTHY)


def as_text(found: Examination) -> str:
    """One paragraph a finding: name and steps, what was seen, what it means, what to turn."""
    number = len(found.findings)
    verdict = "no finding" if number == 0 else f"{number} finding{'s' * (number > 1)}"
    parts = [f"{found.source}: {found.steps} steps, {verdict}"]
    for place, finding in enumerate(found.findings, 1):
        lines = [f"{place}. {finding.name.replace('_', ' ')} ({step_ranges(finding.steps)})"]
        for title, text in (
            ("seen", finding.evidence),
            ("means", finding.why),
            ("turn", finding.knob),
        ):
            lines.append(fill(text, 96, initial_indent=f"   {title:6}", subsequent_indent=" " * 9))
        parts.append("\n".join(lines))
    parts += [fill(f"note: {note}", 96, subsequent_indent="      ") for note in found.notes]
    return "\n\n".join(parts)


def step_ranges(steps: list[int]) -> str:
    """[1, 2, 3, 7] -> "steps 1-3, 7"; long lists end with a count.

    >>> step_ranges([5])
    'step 5'
    """
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    shown = ", ".join(texts[:6])
    more = f" and {len(texts) - 6} more stretches" if len(texts) > 6 else ""
    return f"step{'s' * (len(steps) != 1)} {shown}{more}"
