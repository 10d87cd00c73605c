"""Pictures of a run and of a comparison; each returns a matplotlib Figure.

Colours follow one rule everywhere: grey is a baseline, blue a base model, orange what RFT made;
where graders are attacked, blue is an honest answer and red a cheat that pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rftkit.attacks import AttackReport

GREY, BLUE, ORANGE, GREEN, RED = "#8c8c8c", "#3b6fb6", "#d9722e", "#4c9a5b", "#c0392b"
DPI = 80


def colour_of(name: str) -> str:
    if name.startswith("RFT"):
        return ORANGE
    if "SFT" in name:
        return GREEN
    return BLUE if "base" in name else GREY


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def table_figure(
    report: dict[str, Any], metric: str = "top1", colours: Mapping[str, str] | None = None
) -> Figure:
    """Every system of a report.json: the sampled metric with its interval, greedy as a ring.

    colours   of systems by name, where the name does not tell what a system is
    """
    systems = report["systems"]
    figure, axes = new_figure(8, 0.45 * len(systems) + 1.6)
    places = range(len(systems))[::-1]
    for place, system in zip(places, systems):
        value = system[metric]
        colour = (colours or {}).get(system["name"]) or colour_of(system["name"])
        axes.barh(place, value["mean"], color=colour, alpha=0.85, height=0.62)
        axes.plot([value["low"], value["high"]], [place, place], color="black", lw=1.2)
        if metric in system.get("greedy", {}):
            axes.plot(system["greedy"][metric], place, "o", mfc="white", mec=colour, mew=1.6, ms=7)
    for line in report.get("reference_lines", []):
        axes.axvline(line["value"], color=GREY, lw=0.9, ls=":")
        axes.text(
            line["value"],
            len(systems) - 0.35,
            line["name"],
            fontsize=7,
            color="#555555",
            rotation=25,
            va="bottom",
        )
    axes.set_yticks(list(places), [s["name"] for s in systems])
    axes.set_ylim(-0.6, len(systems) + (0.9 if report.get("reference_lines") else -0.4))
    values = [system[metric] for system in systems]
    axes.set_xlim(min(0, *(v["low"] for v in values)), max(1, *(v["high"] for v in values)))
    axes.set_xlabel(
        f"{metric} on {report['n_cases']} held-out cases; bar: sampled at T = 1 with 95 % interval,"
        " ring: greedy"
    )
    return figure


def curve_figure(
    log: Sequence[dict[str, Any]], start: dict[str, Any] | None = None, base: float | None = None
) -> Figure:
    """A run over its steps: training reward and held-out metric, and the share of each pattern.

    log    the objects of log.jsonl; start: the look before step 1; base: a line to compare with
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    steps = [r["step"] for r in log]
    if log and log[0].get("reward_mean") is not None:
        rewards = [r["reward_mean"] for r in log]
        above.plot(steps, rewards, color=GREY, lw=1, label="training reward (its rows change)")
    looks = [(0, start)] if start else []
    looks += [(r["step"], r["validation"]) for r in log if "validation" in r]
    if looks:
        x = [step for step, _ in looks]
        name = looks[0][1].get("metric", "metric")
        above.fill_between(
            x, [v["low"] for _, v in looks], [v["high"] for _, v in looks], color=ORANGE, alpha=0.2
        )
        above.plot(
            x,
            [v["mean"] for _, v in looks],
            color=ORANGE,
            marker="o",
            ms=4,
            label=f"held-out {name}, 95 % interval",
        )
        best = max(looks, key=lambda look: look[1]["mean"])
        above.axvline(best[0], color=ORANGE, lw=0.9, ls=":")
        above.text(best[0], 0.02, " kept", fontsize=8, color=ORANGE)
    if base is not None:
        above.axhline(base, color=BLUE, lw=1, ls="--", label="base, sampled")
    above.set_ylim(0, 1)
    above.set_ylabel("share right, reward")
    above.legend(loc="best", fontsize=8)
    draw_patterns(below, log, looks)
    below.set_xlabel("step")
    return figure


def draw_patterns(axes: Any, log: Sequence[dict[str, Any]], looks: Sequence) -> None:
    """The share of each thinking pattern, on held-out rows where there are looks."""
    if any(v.get("patterns") for _, v in looks):
        points = [(step, v["patterns"]) for step, v in looks]
        where = "held-out answers"
    else:
        points = [(r["step"], r["patterns"]) for r in log if r.get("patterns")]
        where = "answers"
    for name in points[0][1] if points else []:
        axes.plot(
            [s for s, _ in points], [p.get(name, 0) for _, p in points], marker=".", label=name
        )
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(f"share of {where}")
    if points:
        axes.legend(title="thinking pattern", fontsize=8, title_fontsize=8)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a picture beside its place and rename it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.writing.png")
    figure.savefig(beside, dpi=DPI)
    beside.replace(path)


def cost_figure(cost: dict[str, Any], clock: str = "seconds_a_step") -> Figure:
    """What a GRPO step costs: by answers a prompt, by their length, by the model's size; orange is
    rftkit, grey TRL's own trainer with the same settings.

    cost    the part "cost" that benchmarks/step_time.py records
    clock   "seconds_a_step", or "cpu_seconds_a_step" of a machine that did other work meanwhile
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), dpi=DPI, layout="constrained")
    middle, parameters = cost["middle"], cost["parameters"]
    sides = {"answers_per_prompt": "answers a prompt", "completion_tokens": "tokens an answer"}
    panels = figure.subplots(1, 3, sharey=True)
    models = sorted(parameters, key=parameters.get)
    for way, colour in (("trl", GREY), ("rftkit", ORANGE)):
        points = [p for p in cost["points"] if p["way"] == way]
        for axes, (field, other) in zip(panels, zip(sides, reversed(sides))):
            for model, style in zip(models, ("-", "--")):
                row = [p for p in points if p["model"] == model and p[other] == middle[other]]
                row.sort(key=lambda p: p[field])
                label = f"{way}, {model.removeprefix('embedded:')}"
                axes.plot([p[field] for p in row], [p[clock] for p in row], style, color=colour,
                          marker="o", ms=4, label=label)  # fmt: skip
        row = [p for p in points if all(p[field] == middle[field] for field in sides)]
        row.sort(key=lambda p: parameters[p["model"]])
        x = [parameters[p["model"]] / 1e6 for p in row]
        panels[2].plot(x, [p[clock] for p in row], color=colour, marker="o", ms=4, label=way)
    for axes, label in zip(panels, [*sides.values(), "parameters, millions"]):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.set_xlabel(label)
    for axes, (field, other) in zip(panels, zip(sides, reversed(sides))):
        axes.set_title(f"{middle[other]} {sides[other]}", fontsize=9)
        axes.set_xticks(sorted({p[field] for p in cost["points"]}))
    panels[2].set_title("{} answers of {} tokens".format(*map(middle.get, sides)), fontsize=9)
    panels[0].set_ylabel("seconds a step" if clock == "seconds_a_step" else "processor s a step")
    panels[0].legend(fontsize=7, handlelength=3)
    return figure


def attack_figure(report: AttackReport) -> Figure:
    """What each cheating strategy earns: grey, or red where it pays more than it should; blue
    lines at the honest best, middle and worst answer."""
    from matplotlib.figure import Figure

    results = [r for r in report.results if r.mean is not None][::-1]
    figure = Figure(figsize=(6, 0.18 * len(results) + 1.1), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    colours = [RED if r.red else GREY for r in results]
    axes.barh(range(len(results)), [r.mean for r in results], color=colours, height=0.7)
    axes.set_yticks(range(len(results)), [r.name for r in results], fontsize=8)
    for label, colour in zip(axes.get_yticklabels(), colours):
        label.set_color(RED if colour == RED else "black")
    top = len(results) - 0.4
    named: dict[float, list[str]] = {}  # honest answers that earn the same share a line
    for name, mean in report.honest.items():
        named.setdefault(round(mean, 2), []).append(name)
    for mean, names in named.items():
        axes.vlines(mean, -0.6, top, color=BLUE, lw=1.2, ls="--")
        axes.text(mean, top, ", ".join(names), color=BLUE, fontsize=8, ha="center", va="bottom")
    axes.set_ylim(-0.6, top + 0.8)
    axes.set_xlim(min(0, *(r.mean for r in results)), None)
    axes.set_xlabel(f"mean reward on {report.rows} rows; dashed: honest answers")
    return figure
