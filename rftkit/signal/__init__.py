"""The signal gate: before training, is there anything to learn from?

measure.py      measure_signal: draw, measure, decide       record.py     Signal, Finding
task_checks.py  right, swapped and worse answers            template.py   the prompt, looked at
numbers.py      from graded answers to numbers              estimators.py pass@k, dead groups
judges.py       from numbers to findings        findings.py   their names, knobs, thresholds
verdict.py      from findings to a verdict      questions.py  hard? verifiable? scarce?
command_line.py what `rftkit signal` prints
"""

from rftkit.signal.estimators import dead_chance, pass_at_k
from rftkit.signal.measure import measure_signal, sample_budget
from rftkit.signal.record import Finding, Question, Signal

__all__ = [
    "Finding",
    "Question",
    "Signal",
    "dead_chance",
    "measure_signal",
    "pass_at_k",
    "sample_budget",
]
