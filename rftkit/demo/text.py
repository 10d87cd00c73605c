"""The demo's report in words: tables, and what they do and do not say."""

from __future__ import annotations

from typing import Any


def cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def systems_table(systems: list[dict[str, Any]]) -> list[str]:
    """Markdown rows: top1 with its interval, greedy, top5, MRR, maj@8 and pass@8 where measured."""
    lines = [
        "| system | top1 at T = 1 | greedy | top5 | MRR | maj@8 | pass@8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        maj, any_of = (
            f"{system[k]['mean']:.3f}" if k in system else "" for k in ("maj@8", "pass@8")
        )
        lines.append(
            f"| {system['name']} | {cell(system['top1'])} | {system['greedy']['top1']:.3f} | "
            f"{system['top5']['mean']:.3f} | {system['mrr']['mean']:.3f} | {maj} | {any_of} |"
        )
    return lines


def paired_table(paired: list[dict[str, Any]]) -> list[str]:
    lines = ["| paired difference | metric | difference, 95 % interval |", "|---|---|---|"]
    for pair in paired:
        found = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        lines.append(f"| {pair['a']} - {pair['b']} | {pair['metric']} | {found} |")
    return lines


def report_text(report: dict[str, Any]) -> str:
    """report.md: the table, the paired differences, and what they do and do not say."""
    references = ", ".join(line["name"] for line in report["reference_lines"])
    training = report["training"]
    lines = [
        f"# {report['task']}: {report['n_cases']} held-out cases, seed {report['seed']}",
        "",
        *systems_table(report["systems"]),
        "",
        f"Beside it, {references} ({report['reference_source']}).",
        "",
        *paired_table(report["paired"]),
        "",
        *reading(report),
        "",
        f"RFT: {training['examples']} rows, {training['steps']} steps, {training['samples']} "
        f"sampled answers, {training['seconds']:.0f} s; adapter of step "
        f"{training['best']['step']}. Test genes among the training answers: "
        f"{training['answer_groups_shared_with_eval']}. Peak memory "
        f"{training['peak_rss_mb'] or 0:.0f} MB. Measured {report['date']}, {report['machine']}, "
        f"profile {report['profile']}.",
    ]
    if "real_cases" in report:
        real = report["real_cases"]
        lines += ["", f"## Real published cases: {real['kept']} of {real['read']}", ""]
        lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
        lines += [f"{real['genes']} genes. Lost: {lost}.", "", *systems_table(real["systems"])]
        lines += ["", *paired_table(real["paired"])]
    return "\n".join(lines) + "\n"


def reading(report: dict[str, Any]) -> list[str]:
    """What RFT added, what it did not, and where the row stands that reads the annotation."""
    systems = {system["name"]: system for system in report["systems"]}
    top = {name: system["top1"]["mean"] for name, system in systems.items()}
    base = systems["mini base"]["patterns"].get("diagnose first", 0.0)
    tuned = systems["RFT mini"]["patterns"].get("diagnose first", 0.0)
    return [
        f'What RFT added: it found the way of thinking that works. "Diagnose first" rose from '
        f"{base:.0%} to {tuned:.0%} of the answers and top1 from {top['mini base']:.3f} to "
        f"{top['RFT mini']:.3f}, on genes that never were an answer in training.",
        "What it did not add: knowledge. The same base model, told that plan in one line, reaches "
        f"{top['mini base, told the plan']:.3f} without any training.",
        overlap_sentence(top["overlap"], top["RFT mini"]),
    ]


def overlap_sentence(overlap: float, tuned: float) -> str:
    """Why the overlap row is no rival, and where it stands beside the tuned model's top1."""
    if round(overlap, 3) == round(tuned, 3):
        place = "level with"
    else:
        place = "above" if overlap > tuned else "below"
    return (
        f"The overlap row ({overlap:.3f}) reads the annotation from which the cases were "
        "simulated, and no model here may look anything up: it is no rival, wherever it stands. "
        f"In this run it stands {place} RFT mini ({tuned:.3f})."
    )
