"""The live view of a run: a callback of train(), and a picture from the log alone.

    run = train(config, "runs/first", observers=[TrainingDashboard()])

All that is shown comes from the log objects (and the newest completions), so
`dashboard_figure(run.log)` draws the same after the run.
"""

import base64
import html
import io
import sys
import time
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from rftkit import plots
from rftkit.files import shorten
from rftkit.logs import Lines, Records, alarms_of, points_of, validations_of
from rftkit.plots import BLUE, GREY, RED
from rftkit.records import Sample

DRAWING_SHARE = 0.1  # of the run's time, at most


def dashboard_figure(log: Records, start: dict[str, Any] | None = None, steps: int = 0) -> Figure:
    """Six panels over the steps, from the reward to the entropy. Alarms are red lines."""
    figure, panels = plots.new_figure(11, 4.6, rows=2, columns=3, sharex=True)
    reward, validation, patterns, length, dead_groups, entropy = panels
    _draw_reward(reward, log)
    validations = validations_of(log, start)
    validation.set_title("validation: no held-out rows", fontsize=9)
    if validations:
        validation.set_title(plots.draw_validations(validation, validations), fontsize=9)
        validation.set_ylim(0, max(1.05 * max(v["high"] for v in validations), 0.05))
    source = plots.draw_patterns(patterns, log, validations)
    patterns.set_title(f"thinking patterns, share of {source} completions", fontsize=9)
    if patterns.lines:
        patterns.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _draw_series(length, log, "completion_tokens", "tokens a completion", BLUE)
    if truncated := [(step, share) for step, share in points_of(log, "truncated") if share]:
        note = "truncated: {1:.0%} at step {0}".format(*truncated[-1])
        length.text(0.02, 0.04, note, transform=length.transAxes, fontsize=8, color=RED)
    _draw_series(dead_groups, log, "dead_groups", "share of dead groups", GREY)
    dead_groups.set_ylim(0, 1.02)
    _draw_series(entropy, log, "entropy", "entropy, nats a token", BLUE)
    alarms = [record["step"] for record in log if record.get("alarms")]
    for panel in panels:
        panel.tick_params(labelsize=8)
        panel.set_xlim(0, max([steps, 1, *(record["step"] for record in log)]))
        for step in alarms:
            panel.axvline(step, color=RED, lw=0.8, alpha=0.6)
    for panel in panels[3:]:
        panel.set_xlabel("step", fontsize=8)
    return figure


def _draw_reward(axes: Any, log: Records) -> None:
    records = [record for record in log if record.get("reward_mean") is not None]
    if not records:  # supervised training has none
        return _draw_series(axes, log, "loss", "loss", GREY)
    stds = [record.get("group_spread") or 0.0 for record in records]
    low = [record["reward_mean"] - std for record, std in zip(records, stds)]
    high = [record["reward_mean"] + std for record, std in zip(records, stds)]
    axes.fill_between([r["step"] for r in records], low, high, color=GREY, alpha=0.25, lw=0)
    _draw_series(axes, log, "reward_mean", "training reward ± std in a group", GREY)


def _draw_series(axes: Any, log: Records, field: str, title: str, colour: str) -> None:
    axes.set_title(title, fontsize=9)
    if points := points_of(log, field):
        axes.plot(*zip(*points), color=colour, lw=1.3, marker=".", ms=3)
    axes.set_ylim(bottom=0)


def dashboard_html(line: str, figure: Figure, log: Records, samples: Sequence[Sample] = ()) -> str:
    """The headline, the last alarms, the picture, the best and worst of the newest completions."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    data = base64.b64encode(picture.getvalue()).decode()
    parts = [f"<b>{html.escape(line)}</b>"]
    for alarm in alarms_of(log)[-3:]:
        text = html.escape(f"step {alarm['step']}: {alarm['name']}. {alarm['cause']}")
        parts.append(f'<span style="color:{RED}">{text}</span>')
    parts.append(f'<img src="data:image/png;base64,{data}" alt="{html.escape(line)}">')
    graded = [sample for sample in samples if sample.grade is not None]
    for name, choose in (("best", max), ("worst", min)) if graded else ():
        sample = choose(graded, key=lambda sample: sample.grade)
        text = shorten(f"{sample.reasoning} → {sample.output_text}", 220)
        label = f"{name} of the newest completions, grade {sample.grade:.2f}"
        parts.append(f"<small>{label}</small><br><code>{html.escape(text)}</code>")
    return "".join(f"<div>{part}</div>" for part in parts)


class TrainingDashboard(Lines):
    """An observer for train(). In Jupyter one output is redrawn; elsewhere it prints lines."""

    def __init__(self):
        self.live = in_jupyter()
        super().__init__((lambda text: None) if self.live else print)
        self.newest: list[Sample] = []
        self.next_drawing = 0.0  # on the clock of time.perf_counter

    def answers(self, record: dict[str, Any], samples: list[Sample]) -> None:
        """The slower a drawing is, the fewer there are."""
        self.newest = samples
        if "alarms" in record or time.perf_counter() >= self.next_drawing:
            self.draw()

    def end(self, run: Any) -> None:
        super().end(run)
        self.draw()

    def draw(self) -> None:
        if not self.live:
            return
        began, line = time.perf_counter(), self.headline()
        steps = 0 if self.ended else self.steps  # at the end no room is kept for more
        figure = dashboard_figure(self.log, self.start, steps)
        self.show(dashboard_html(line, figure, self.log, self.newest), line)
        drawn = time.perf_counter()
        self.next_drawing = drawn + (drawn - began) / DRAWING_SHARE

    def show(self, page: str, line: str) -> None:
        """Put HTML, and a line for what shows no HTML, in place of what this run showed before."""
        from IPython.display import display

        both, again = {"text/html": page, "text/plain": line}, self.next_drawing > 0
        display(both, raw=True, display_id=f"rftkit-{id(self)}", update=again)


def in_jupyter() -> bool:
    """A notebook's kernel, which can redraw an output; not a terminal's IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
