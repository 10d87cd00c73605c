"""What `rftkit signal` prints: the verdict, its reasons, the numbers, and some of the samples."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rftkit.signal.record import Signal

COLOURS = {"go": "green", "fix": "red", "undecided": "yellow"}


def print_signal(signal: Signal, console: Console) -> None:
    """Verdict first, then what it rests on."""
    colour = COLOURS[signal.verdict]
    console.print(f"{signal.verdict}: {signal.reason}", markup=False, style=f"bold {colour}")
    for finding in signal.findings:
        console.print(f"\n{finding.name}", markup=False, style="bold")
        console.print(f"  {finding.evidence}", markup=False)
        console.print(f"  turn: {finding.knob}", markup=False)
    console.print()
    for question in signal.questions:
        console.print(f"{question.question} {question.answer}", markup=False, style="bold")
        console.print(f"  {question.evidence}", markup=False)
    for note in signal.notes:
        console.print(f"note: {note}", markup=False, style="yellow")
    if signal.samples:
        print_numbers(signal, console)
        print_samples(signal, console)


def print_numbers(signal: Signal, console: Console) -> None:
    """The table of numbers: means over rows with 95 % intervals over groups of rows."""
    table = Table("measured", "value", box=None, pad_edge=False, header_style="bold")
    for name, value in number_lines(signal):
        table.add_row(name, escape(value))
    console.print()
    console.print(table)


def number_lines(signal: Signal) -> list[tuple[str, str]]:
    """(name, value) of every number, in words."""
    lines = [
        (
            "drawn",
            f"{signal.samples} answers of {signal.policy} to {signal.rows} rows, seed "
            f"{signal.seed} (at most {signal.budget})",
        )
    ]
    lines += [(f"pass@{k}", str(value)) for k, value in signal.pass_at.items()]
    if signal.reward is not None:
        lines += [
            ("reward", f"{signal.reward}, spread within a row {signal.spread:.3f}"),
            (f"groups of {signal.group} without spread", str(signal.dead_groups)),
            ("  among readable answers", str(signal.dead_ability)),
        ]
        lines += [(f"  dead: {kind}", f"{share:.0%}") for kind, share in signal.dead_kinds.items()]
    if signal.format_share is not None:
        form = signal.format_share
        lines.append(("spread that is form, ability", f"{form:.0%}, {1 - form:.0%}"))
    for name, part in signal.sub_graders.items():
        value = f"mean {part['mean']:.3f}, spread {part['spread']:.3f}, moves in "
        lines.append((f"sub-grader {name}", f"{value}{part['moving']:.0%} of the rows"))
    read = ", ".join(f"{stage} {share:.1%}" for stage, share in signal.stages.items())
    lines.append(("answers", read))
    lengths = {k: v for k, v in signal.lengths.items() if k not in ("limit", "probe")}
    shown = ", ".join(f"{name} {tokens:.0f}" for name, tokens in lengths.items())
    lines.append(("tokens", f"{shown}; limit {signal.lengths['limit']}, cut {signal.cut}"))
    lines.append(("rows", f"{len(signal.never)} never solved, {len(signal.always)} always solved"))
    for name, pattern in signal.patterns.items():
        earns = "" if pattern["reward"] is None else f", which earn {pattern['reward']:.2f}"
        lines.append((f"pattern {name}", f"{pattern['share']:.0%} of the answers{earns}"))
    return lines


def print_samples(signal: Signal, console: Console) -> None:
    """Some answers, from the worst to the best."""
    console.print("\nanswers, from worst to best", style="bold")
    for sample in signal.shown:
        console.print(f"  {sample_line(sample)}", markup=False)


def sample_line(sample: dict[str, Any], width: int = 90) -> str:
    """One answer in one line: grade, row, what was thought and said."""
    grade = "lost" if sample["grade"] is None else f"{sample['grade']:.2f}"
    said = f"{sample['reasoning']} => {sample['output_text']}".replace("\n", " ")
    cut = " (cut)" if sample["finish_reason"] == "length" else ""
    return f"{grade} {sample['row_id']}: {said[:width]}{cut}"
