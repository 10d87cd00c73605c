"""The live view of a run: an observer of its log, and pictures from the log alone.

    run = train(config, "runs/first", observers=[TrainingDashboard()])

In Jupyter one output is redrawn in place; anywhere else each look at the held-out rows is a line of
text. Everything that is shown comes from the log objects (and the newest answers), so
`dashboard_figure(read_lines("runs/first/log.jsonl"))` draws the same after the run.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.plots import BLUE, DPI, GREY, ORANGE, save_figure
from rftkit.records import Sample
from rftkit.training.store import read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RED = "#c0392b"
DRAWING_SHARE = 0.1  # of the run's time, at most
SHOWN_CHARACTERS = 220

Log = Sequence[dict[str, Any]]


# --- what is shown: pure functions of the log --------------------------------------------------


def dashboard_state(
    log: Log,
    steps: int = 0,
    start: dict[str, Any] | None = None,
    answers: Sequence[Sample] = (),
    ended: str | None = None,
) -> dict[str, Any]:
    """All that the dashboard says, as one dict.

    ended                                                    what ended the run, None while it runs
    step, steps, left_seconds (None before the first step)   where the run is
    reward, spread, dead_groups, length, entropy             of the last step
    look, best                                               the last and the best held-out look
    alarms                                                   [{"step", "name", "cause"}]
    best_answer, worst_answer                                {"text", "grade", "row"} or None
    """
    last = log[-1] if log else {}
    looks = looks_of(log, start)
    graded = [a for a in answers if a.grade is not None]
    return {
        "ended": ended,
        "step": last.get("step", 0),
        "steps": steps or last.get("step", 0),
        "left_seconds": seconds_left(log, steps),
        "reward": last.get("reward_mean"),
        "spread": last.get("group_spread"),
        "dead_groups": last.get("dead_groups"),
        "length": last.get("completion_tokens"),
        "entropy": last.get("entropy"),
        "look": looks[-1] if looks else None,
        "best": max(looks, key=lambda look: look["mean"]) if looks else None,
        "alarms": [{"step": r["step"], **a} for r in log for a in r.get("alarms", [])],
        "best_answer": shown(max(graded, key=lambda a: a.grade)) if graded else None,
        "worst_answer": shown(min(graded, key=lambda a: a.grade)) if graded else None,
    }


def looks_of(log: Log, start: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The looks at held-out rows with their steps, the one before step 1 among them."""
    looks = [{"step": 0, **start}] if start else []
    return looks + [{"step": r["step"], **r["validation"]} for r in log if "validation" in r]


def seconds_left(log: Log, steps: int) -> float | None:
    """Steps left times the mean of the last 20 steps, looks and all."""
    if not log or steps <= log[-1]["step"]:
        return 0.0 if log else None
    recent = log[-21:]
    if len(recent) == 1:
        mean = recent[0]["seconds"] / recent[0]["step"]
    else:
        took = recent[-1]["seconds"] - recent[0]["seconds"]
        mean = took / (recent[-1]["step"] - recent[0]["step"])
    return max(mean, 0.0) * (steps - log[-1]["step"])


def shown(answer: Sample) -> dict[str, Any]:
    text = f"{answer.reasoning} → {answer.output_text}" if answer.reasoning else answer.output_text
    text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return {"text": text, "grade": answer.grade, "row": answer.row_id}


def headline(state: dict[str, Any]) -> str:
    """One line: the step, the time left, the reward, the held-out metric."""
    said = [f"step {state['step']}/{state['steps']}"]
    if state["ended"]:
        said[0] += f", ended by {state['ended']}"
    elif state["left_seconds"] is not None:
        said[0] += f", {clock(state['left_seconds'])} left"
    if state["reward"] is not None:
        said.append(f"reward {state['reward']:.2f}")
        if state["spread"] is not None:
            said[-1] += f" (spread in a group {state['spread']:.2f})"
    if state["dead_groups"] is not None:
        said.append(f"dead groups {state['dead_groups']:.0%}")
    if look := state["look"]:
        interval = f"[{look['low']:.3f}, {look['high']:.3f}]"
        said.append(f"held-out {look['metric']} {look['mean']:.3f} {interval}")
        said[-1] += f", best {state['best']['mean']:.3f} at step {state['best']['step']}"
    return "; ".join(said)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def dashboard_figure(log: Log, start: dict[str, Any] | None = None, steps: int = 0) -> Figure:
    """Six panels over the steps: reward, held-out metric, thinking patterns, length, dead groups,
    entropy. Alarms are red lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flat
    looks = looks_of(log, start)
    draw_reward(panels[0], log)
    draw_looks(panels[1], looks)
    draw_patterns(panels[2], log, looks)
    draw_series(panels[3], log, "completion_tokens", "tokens an answer", BLUE)
    draw_series(panels[4], log, "dead_groups", "share of dead groups", GREY, (0, 1.02))
    draw_series(panels[5], log, "entropy", "entropy, nats a token", BLUE)
    cut = [(r["step"], r["truncated"]) for r in log if r.get("truncated")]
    if cut:
        step, share = cut[-1]  # the last step with one, which may lie behind
        note = f"cut at the limit: {share:.0%} at step {step}"
        panels[3].text(0.02, 0.04, note, transform=panels[3].transAxes, fontsize=8, color=RED)
    last = max([steps, 1, *(r["step"] for r in log)])
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.set_xlim(0, last)
        for record in log:
            if record.get("alarms"):
                panel.axvline(record["step"], color=RED, lw=0.8, alpha=0.6)
    for panel in panels[3:]:
        panel.set_xlabel("step", fontsize=8)
    return figure


def draw_reward(axes: Any, log: Log) -> None:
    axes.set_title("training reward ± spread in a group", fontsize=9)
    points = [r for r in log if r.get("reward_mean") is not None]
    if not points:
        return draw_series(axes, log, "loss", "loss", GREY)
    x, mean = [r["step"] for r in points], [r["reward_mean"] for r in points]
    spread = [r.get("group_spread") or 0.0 for r in points]
    axes.fill_between(
        x,
        [m - s for m, s in zip(mean, spread)],
        [m + s for m, s in zip(mean, spread)],
        color=GREY,
        alpha=0.25,
        lw=0,
    )
    axes.plot(x, mean, color=GREY, lw=1.3, marker=marker(x))
    axes.set_ylim(bottom=0)


def draw_looks(axes: Any, looks: Log) -> None:
    axes.set_title("held-out metric, 95 % interval", fontsize=9)
    if not looks:
        axes.text(0.5, 0.5, "no held-out rows", transform=axes.transAxes, ha="center", fontsize=8)
        return
    x = [look["step"] for look in looks]
    low, high = [look["low"] for look in looks], [look["high"] for look in looks]
    axes.fill_between(x, low, high, color=ORANGE, alpha=0.2, lw=0)
    axes.plot(x, [look["mean"] for look in looks], color=ORANGE, marker="o", ms=3, clip_on=False)
    best = max(looks, key=lambda look: look["mean"])
    axes.plot(best["step"], best["mean"], "o", ms=9, mfc="none", mec=ORANGE, clip_on=False)
    axes.set_title(f"held-out {best['metric']}, 95 % interval, best ringed", fontsize=9)
    axes.set_ylim(0, max(1.05 * max(high), 0.05))


def draw_patterns(axes: Any, log: Log, looks: Log) -> None:
    """On held-out answers where there are looks, else on the training answers."""
    points = [(look["step"], look["patterns"]) for look in looks if look.get("patterns")]
    where = "held-out"
    if not points:
        where = "training"
        points = [(r["step"], r["patterns"]) for r in log if r.get("patterns")]
    axes.set_title(f"thinking patterns, share of {where} answers", fontsize=9)
    x = [step for step, _ in points]
    for name in points[0][1] if points else []:
        shares = [patterns.get(name, 0) for _, patterns in points]
        axes.plot(x, shares, lw=1.3, marker=marker(x), label=name, clip_on=False)
    axes.set_ylim(0, 1.02)
    if points:
        axes.legend(fontsize=7, frameon=False)


def draw_series(
    axes: Any, log: Log, field: str, title: str, colour: str, limits: tuple | None = None
) -> None:
    axes.set_title(title, fontsize=9)
    points = [(r["step"], r[field]) for r in log if r.get(field) is not None]
    x, y = [step for step, _ in points], [value for _, value in points]
    axes.plot(x, y, color=colour, lw=1.3, marker=marker(x))
    axes.set_ylim(*(limits or (0, None)))


def marker(x: Sequence[int]) -> str | None:
    """A line through one point is invisible: the first steps are dots."""
    return "." if len(x) < 10 else None


def dashboard_html(state: dict[str, Any], figure: Figure) -> str:
    """The dashboard as one piece of HTML, picture included."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    data = base64.b64encode(picture.getvalue()).decode()
    parts = [f"<div><b>{html.escape(headline(state))}</b></div>"]
    for alarm in state["alarms"][-3:]:
        text = f"step {alarm['step']}: {alarm['name']}. {alarm['cause']}"
        parts.append(f'<div style="color:{RED}">{html.escape(text)}</div>')
    alt = html.escape(headline(state), quote=True)
    parts.append(f'<img src="data:image/png;base64,{data}" alt="{alt}">')
    for name, answer in (("best", state["best_answer"]), ("worst", state["worst_answer"])):
        if answer:
            text = html.escape(answer["text"])
            label = f"{name} of the newest answers, grade {answer['grade']:.2f}"
            parts.append(f"<div><small>{label}</small><br><code>{text}</code></div>")
    return "".join(parts)


def dashboard_text(page: str) -> str:
    """What dashboard_html says, for a reader who sees no HTML: one line a block, no picture."""
    lines = re.sub(r"</div>|<br>", "\n", page)
    return html.unescape(re.sub(r"<[^>]*>", "", lines)).strip()


# --- the observer ------------------------------------------------------------------------------


class TrainingDashboard:
    """Hand it to train() as an observer.

    show   how a piece of HTML is shown and later replaced; None: as Jupyter does it, and lines of
           text where there is no Jupyter
    say    where lines of text go
    """

    def __init__(
        self,
        show: Callable[[str], None] | None = None,
        say: Callable[[str], None] = print,
    ):
        self.show = show or (jupyter_display() if in_jupyter() else None)
        self.say = say
        self.log: list[dict[str, Any]] = []
        self.newest: list[Sample] = []
        self.start: dict[str, Any] | None = None
        self.steps, self.ended = 0, None
        self.drawn_at, self.drawing_took = float("-inf"), 0.0

    def begin(self, plan: Any, log: list[dict[str, Any]], start: dict[str, Any]) -> None:
        self.log, self.steps, self.start = list(log), plan.steps, start or None
        self.ended = None
        if self.show is None:
            for reason in plan.reasons:
                self.say(reason)

    def __call__(self, record: dict[str, Any]) -> None:
        self.log.append(record)
        if self.show is None and ("validation" in record or "alarms" in record):
            self.say(headline(self.state()))
            for alarm in record.get("alarms", []):
                self.say(f"  alarm: {alarm['name']}. {alarm['cause']}")

    def answers(self, record: dict[str, Any], samples: list[Sample]) -> None:
        self.newest = samples
        rested = time.perf_counter() - self.drawn_at
        if "alarms" in record or rested * DRAWING_SHARE >= self.drawing_took:
            self.draw()

    def end(self, run: Any) -> None:
        self.ended = run.training["stopped"]
        self.draw()

    def state(self) -> dict[str, Any]:
        return dashboard_state(self.log, self.steps, self.start, self.newest, self.ended)

    def draw(self) -> None:
        """Replace what is shown. A slow drawing is done more seldom, so that it costs little."""
        if self.show is None:
            return
        began = time.perf_counter()
        steps = 0 if self.ended else self.steps  # at the end no room is kept for more
        self.show(dashboard_html(self.state(), dashboard_figure(self.log, self.start, steps)))
        self.drawn_at = time.perf_counter()
        self.drawing_took = self.drawn_at - began


def in_jupyter() -> bool:
    """A notebook's kernel, which can redraw an output; not a terminal's IPython."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def jupyter_display() -> Callable[[str], None]:
    """One output that every call replaces: HTML, and its words for what shows no HTML."""
    from IPython.display import display

    handle = None

    def show(page: str) -> None:
        nonlocal handle
        both = {"text/html": page, "text/plain": dashboard_text(page)}
        if handle is None:
            handle = display(both, raw=True, display_id=True)
        else:
            handle.update(both, raw=True)

    return show


def save_run_picture(out: str | Path) -> Path:
    """RUN/curve.png, from RUN's log and summary alone; -> its path."""
    out = Path(out)
    summary = out / "training.json"
    start = json.loads(summary.read_text(encoding="utf-8"))["start"] if summary.exists() else {}
    place = out / "curve.png"
    save_figure(dashboard_figure(read_lines(out / "log.jsonl"), start), place)
    return place
