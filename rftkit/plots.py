"""Pictures of a run and of a comparison; each returns a matplotlib Figure.

Colours follow one rule everywhere: grey is a baseline, blue a base model, orange what RFT made;
where graders are attacked, blue is an honest answer and red a cheat that pays.
"""

from typing import Any

from matplotlib.figure import Figure

from rftkit.attacks import AttackReport
from rftkit.logs import Records, best_of

GREY, BLUE, ORANGE, GREEN, RED = "#8c8c8c", "#3b6fb6", "#d9722e", "#4c9a5b", "#c0392b"
DPI = 80


def colour_of(name: str) -> str:
    if name.startswith("RFT"):
        return ORANGE
    if "SFT" in name:
        return GREEN
    return BLUE if "base" in name else GREY


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any
) -> tuple[Figure, list[Any]]:
    """A figure and its panels, row by row."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def table_figure(report: dict[str, Any], metric: str = "top1") -> Figure:
    """Every system of a report.json: the sampled metric with its interval, greedy as a ring."""
    systems = report["systems"]
    figure, [axes] = new_figure(8, 0.45 * len(systems) + 1.6)
    places = range(len(systems))[::-1]
    for place, system in zip(places, systems):
        value, colour = system[metric], colour_of(system["name"])
        axes.barh(place, value["mean"], color=colour, alpha=0.85, height=0.62)
        axes.plot([value["low"], value["high"]], [place, place], color="black", lw=1.2)
        if metric in system.get("greedy", {}):
            axes.plot(system["greedy"][metric], place, "o", mfc="white", mec=colour, mew=1.6, ms=7)
    axes.set_yticks(list(places), [system["name"] for system in systems])
    axes.set_ylim(-0.6, len(systems) - 0.4)
    axes.set_xlim(right=max(1, axes.get_xlim()[1]))
    bars = "bar: sampled at T = 1 with 95 % interval, ring: greedy"
    axes.set_xlabel(f"{metric} on {report['n_cases']} test cases; {bars}", fontsize=9)
    return figure


def draw_validations(axes: Any, validations: Records) -> str:
    """The held-out metric over the steps; returns the curve's label."""
    steps, low, high, mean = ([v[k] for v in validations] for k in ("step", "low", "high", "mean"))
    best = best_of(validations)
    label = f"validation {best['metric']}, 95 % interval, best ringed"
    axes.fill_between(steps, low, high, color=ORANGE, alpha=0.2, lw=0)
    axes.plot(steps, mean, color=ORANGE, marker="o", ms=3.5, label=label, clip_on=False)
    axes.plot(best["step"], best["mean"], "o", ms=9, mfc="none", mec=ORANGE, clip_on=False)
    return label


def draw_patterns(axes: Any, log: Records, validations: Records) -> str:
    """The share of each thinking pattern in validation, else in training; says in which."""
    records = [validation for validation in validations if validation.get("patterns")]
    source = "validation" if records else "training"
    records = records or [record for record in log if record.get("patterns")]
    steps = [record["step"] for record in records]
    for name in records[0]["patterns"] if records else []:
        shares = [record["patterns"].get(name, 0) for record in records]
        axes.plot(steps, shares, lw=1.3, marker=".", ms=3, label=name, clip_on=False)
    axes.set_ylim(0, 1.02)
    return source


def attack_figure(report: AttackReport) -> Figure:
    """What each cheating strategy earns, red where it pays; blue lines at the honest answers."""
    results = [result for result in report.results if result.mean is not None][::-1]
    figure, [axes] = new_figure(6, 0.18 * len(results) + 1.1)
    colours = [RED if result.red else GREY for result in results]
    axes.barh(range(len(results)), [r.mean for r in results], color=colours, height=0.7)
    axes.set_yticks(range(len(results)), [r.name for r in results], fontsize=8)
    for label, result in zip(axes.get_yticklabels(), results):
        label.set_color(RED if result.red else "black")
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
