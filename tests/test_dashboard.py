"""The live view and the pictures: everything that they say comes from the log."""

import base64
from pathlib import Path
from types import SimpleNamespace

from rftkit.dashboard import TrainingDashboard, dashboard_figure, dashboard_html
from rftkit.records import Sample


def validation(mean):
    return {"metric": "top1", "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
            "patterns": {"lead": 0.2, "weigh": mean}}  # fmt: skip


def made_log(steps=10):
    fields = {"group_spread": 0.1, "dead_groups": 0.25, "truncated": 0.0, "loss": 0.1}
    log = [
        fields | {"step": step, "seconds": 2.0 * step, "reward_mean": 0.2 + 0.03 * step}
        | {"completion_tokens": 20.0 + step, "entropy": 1.0 / step, "patterns": {"lead": 0.5}}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    for record in log[4::5]:
        record["validation"] = validation(0.6 if record["step"] == 5 else 0.4)
    return log


START = validation(0.2)
SAMPLES = [
    Sample(row_id="r1", reasoning="Lead.", output_text='{"genes": ["A"]}', grade=0.1),
    Sample(row_id="r2", reasoning="Weigh.", output_text='{"genes": ["<b>"]}', grade=0.9),
    Sample(row_id="r3", output_text="never graded"),
]
PLAN = SimpleNamespace(steps=20, lines=lambda: ["because of this"])
ENDED = SimpleNamespace(
    training={"steps": 10, "stopped": "patience"}, best=validation(0.6) | {"step": 5}, start=START,
    out=Path("nowhere"),
)  # fmt: skip


def headline(log, steps=20, start=None, ended=None):
    made = TrainingDashboard()
    made.begin(SimpleNamespace(steps=steps, lines=list), log, start)
    made.ended = ended
    return made.headline()


def test_the_headline_says_what_the_log_says():
    line = headline(made_log(), start=START)
    for part in ("step 10/20, 0:00:20 left", "reward 0.50 (std in a group 0.10)", "groups 25%"):
        assert part in line
    assert "validation top1 0.400 [0.300, 0.500], best 0.600 at step 5" in line
    assert "ended by patience" in headline(made_log(), ended="patience")
    assert headline([]) == "step 0/20"
    observer = TrainingDashboard()
    observer.end(ENDED)
    observer.begin(PLAN, made_log(), START)  # of the next run
    assert "ended" not in observer.headline()


def test_the_time_left_follows_the_last_twenty_steps():
    log = made_log(30)
    assert "0:00:00 left" in headline(log, 30)
    first = [{"step": 1, "seconds": 500.0, "timings": {"sampling": 2.0, "training": 1.0}}]
    assert "0:00:06 left" in headline(first, 3)  # the gate took the rest
    assert "0:00:02 left" in headline(log[:2], 3)
    slower = [*log, {"step": 31, "seconds": 1000.0}]  # 20 steps took 978 seconds
    assert "0:00:49 left" in headline(slower, 32)


def test_the_dashboard_draws_validation_alarms_and_truncation():
    log = made_log()
    log[6]["alarms"] = [{"name": "n", "cause": "c"}]
    log[3]["truncated"] = 0.125
    panels = dashboard_figure(log, START, 20).axes
    without_alarm = dashboard_figure(made_log(), START, 20).axes
    assert len(panels) == 6 and panels[0].get_xlim() == (0, 20)
    assert panels[1].lines[0].get_xydata().tolist() == [[0, 0.2], [5, 0.6], [10, 0.4]]
    assert "validation" in panels[2].get_title() and len(panels[2].get_legend().texts) == 2
    assert all(len(a.lines) == len(b.lines) + 1 for a, b in zip(panels, without_alarm))
    assert [text.get_text() for text in panels[3].texts] == ["truncated: 12% at step 4"]


def test_pictures_bear_logs_without_rewards_validations_or_steps():
    sft = [{"step": s, "seconds": s, "reward_mean": None, "loss": 1.0 / s} for s in (1, 2)]
    assert dashboard_figure(sft).axes[0].get_title() == "loss"
    assert "training" in dashboard_figure(made_log(1)).axes[2].get_title()
    for log in ([], sft, made_log(1)):
        assert len(dashboard_figure(log).axes) == 6


def test_html_shows_alarms_and_completions_escaped():
    log = made_log()
    log[3]["alarms"] = [{"name": "entropy collapse", "cause": "a < b"}]
    page = dashboard_html("step 10/20", dashboard_figure(log), log, SAMPLES)
    assert "&lt;b&gt;" in page and "<b>&" not in page
    assert "step 4: entropy collapse. a &lt; b" in page
    assert base64.b64decode(page.split("base64,")[1].split('"')[0])[:4] == b"\x89PNG"
    assert page.index("grade 0.90") < page.index("Weigh.") < page.index("grade 0.10")


def test_drawing_is_rare_where_it_is_slow_and_an_ended_run_is_drawn(monkeypatch, capsys):
    monkeypatch.setattr("rftkit.dashboard.in_jupyter", lambda: True)
    shown, dashboard = [], TrainingDashboard()
    monkeypatch.setattr(dashboard, "show", lambda page, line: shown.append((page, line)))
    dashboard.begin(PLAN, [], START)
    for record in made_log(5):
        dashboard(record)
        dashboard.answers(record, SAMPLES)
        dashboard.next_drawing = 1e12
    dashboard.end(ENDED)
    assert capsys.readouterr().out == ""
    (first, _), (last, line) = shown
    assert f'alt="{line}"' in last and 'alt="step 1/20' in first
    assert line.startswith("step 5/20, ended by patience") and " left" not in line


def test_without_jupyter_it_prints_plan_gate_validations_alarms_and_end(capsys):
    dashboard, log = TrainingDashboard(), made_log(10)
    log[6]["alarms"] = [{"name": "entropy collapse", "cause": "flat"}]
    dashboard.gate(SimpleNamespace(verdict="go", reason="60% of the groups are alive", findings=[]))
    dashboard.begin(PLAN, made_log(4), START)
    for record in log[4:]:
        dashboard(record)
        dashboard.answers(record, [])
    dashboard.end(ENDED)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["signal gate: go: 60% of the groups are alive", "because of this"]
    starts = ["step 5/20", "step 7/20", "  ALARM entropy collapse: flat", "step 10/20",
              "10 steps, ended by patience", "kept step 5, validation top1 0.600"]  # fmt: skip
    assert all(line.startswith(start) for line, start in zip(lines[2:], starts, strict=True))
