"""The live view: everything that it says comes from the log."""

import base64
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rftkit.dashboard import (
    TrainingDashboard,
    clock,
    dashboard_figure,
    dashboard_html,
    dashboard_state,
    dashboard_text,
    headline,
    in_jupyter,
    save_run_picture,
    seconds_left,
)
from rftkit.records import Sample
from rftkit.training.config import Plan


def look(mean):
    return {"metric": "top1", "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
            "patterns": {"lead": 0.2, "weigh": mean}}  # fmt: skip


def made_log(steps=10):
    log = []
    for step in range(1, steps + 1):
        record = {
            "step": step, "seconds": 2.0 * step, "reward_mean": 0.2 + 0.03 * step,
            "group_spread": 0.1, "dead_groups": 0.25, "completion_tokens": 20.0 + step,
            "truncated": 0.0, "entropy": 1.0 / step, "loss": 0.1, "patterns": {},
        }  # fmt: skip
        if step % 5 == 0:
            record["validation"] = look(0.6 if step == 5 else 0.4)
        log.append(record)
    return log


ANSWERS = [
    Sample(row_id="r1", reasoning="Lead.", output_text='{"genes": ["A"]}', grade=0.1),
    Sample(row_id="r2", reasoning="Weigh.", output_text='{"genes": ["<b>"]}', grade=0.9),
    Sample(row_id="r3", output_text="never graded"),
]
PLAN = Plan("grpo", 8, 4, 2, 4, 8, 8, 1, 8, 20, 160, 5.0, 5, 8, 4, 1e-3, ["because of this"])
ENDED = SimpleNamespace(training={"stopped": "patience"})


def test_state_says_something_that_the_log_does_not():
    state = dashboard_state(made_log(), 20, look(0.2), ANSWERS)
    assert (state["step"], state["steps"], state["left_seconds"]) == (10, 20, 20.0)
    assert state["reward"] == pytest.approx(0.5) and state["spread"] == 0.1
    assert state["look"]["mean"] == 0.4 and state["best"]["mean"] == 0.6
    assert state["best"]["step"] == 5 and state["alarms"] == []
    assert state["best_answer"]["row"] == "r2" and state["worst_answer"]["grade"] == 0.1
    text = headline(state)
    for part in ("step 10/20, 0:20 left", "reward 0.50", "dead groups 25%", "best 0.600 at step 5"):
        assert part in text
    empty = dashboard_state([], 20)
    assert empty["left_seconds"] is None and headline(empty) == "step 0/20"


def test_time_left_counts_what_is_over():
    log = made_log(10)
    assert seconds_left(log, 10) == 0 and seconds_left(log[:1], 3) == 4.0
    slower = log + [{"step": 11, "seconds": 40.0}]
    assert seconds_left(slower, 12) == pytest.approx(38 / 10)
    assert clock(59.6) == "1:00" and clock(3725) == "1:02:05"


def test_pictures_need_more_than_the_log():
    figure = dashboard_figure(made_log(), look(0.2), 20)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 6 and "best ringed" in titles[1] and "held-out answers" in titles[2]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[0, 0.2], [5, 0.6], [10, 0.4]]
    assert figure.axes[0].get_xlim() == (0, 20)
    alarmed = made_log()
    alarmed[6]["alarms"] = [{"name": "n", "cause": "c"}]
    lines = len(dashboard_figure(alarmed).axes[5].lines)
    assert lines == len(dashboard_figure(made_log()).axes[5].lines) + 1
    alarmed[3]["truncated"] = 0.125
    [note] = dashboard_figure(alarmed).axes[3].texts
    assert note.get_text() == "cut at the limit: 12% at step 4"
    sft = [{"step": s, "seconds": s, "reward_mean": None, "loss": 1.0 / s} for s in (1, 2)]
    assert dashboard_figure(sft).axes[0].get_title() == "loss"
    dashboard_figure([])


def dark_pixels(axes):
    """How much ink the lines of a panel leave, its frame and letters apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for artist in (*axes.spines.values(), axes.xaxis, axes.yaxis, axes.title, *axes.texts):
        artist.set_visible(False)
    if axes.get_legend():
        axes.get_legend().set_visible(False)
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    box = axes.get_window_extent()
    height = canvas.get_width_height()[1]
    rows = slice(int(height - box.y1), int(height - box.y0))
    inside = np.asarray(canvas.buffer_rgba())[rows, int(box.x0) : int(box.x1), :3]
    return int((inside < 250).any(axis=-1).sum())


def test_after_one_step_the_panels_are_empty():
    figure = dashboard_figure(made_log(1), look(0.2), 20)
    ink = [dark_pixels(axes) for axes in figure.axes]
    assert all(pixels > 5 for pixels in ink), ink


def test_a_run_folder_is_not_drawn(tmp_path):
    lines = [json.dumps(record) for record in made_log()]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert save_run_picture(tmp_path).read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "training.json").write_text(json.dumps({"start": look(0.2)}))
    assert save_run_picture(tmp_path) == tmp_path / "curve.png"


def test_html_lets_an_answer_write_html():
    log = made_log()
    log[3]["alarms"] = [{"name": "entropy collapse", "cause": "a < b"}]
    state = dashboard_state(log, 20, None, ANSWERS)
    page = dashboard_html(state, dashboard_figure(log))
    assert "&lt;b&gt;" in page and "<b>&" not in page and "a &lt; b" in page
    data = page.split("base64,")[1].split('"')[0]
    assert base64.b64decode(data)[:4] == b"\x89PNG"


def test_a_reader_without_html_sees_an_objects_address():
    """What Jupyter gets beside the HTML: the same words, no tags, no picture."""
    state = dashboard_state(made_log(), 20, None, ANSWERS)
    text = dashboard_text(dashboard_html(state, dashboard_figure(made_log())))
    lines = text.splitlines()
    assert lines[0] == headline(state) and "base64" not in text and "div" not in text
    assert lines[1] == "best of the newest answers, grade 0.90"
    assert lines[2] == 'Weigh. → {"genes": ["<b>"]}'


def test_drawing_slows_the_run_down():
    """Drawn at once, then not again until ten times the drawing's time has gone by; at the end."""
    shown = []

    def slow(page):
        shown.append(page)
        time.sleep(0.02)

    dashboard = TrainingDashboard(show=slow)
    dashboard.begin(PLAN, [], look(0.2))
    for record in made_log(5):
        dashboard(record)
        dashboard.answers(record, ANSWERS)
    assert len(shown) == 1 and "step 1/20" in shown[0]
    dashboard.end(ENDED)
    assert len(shown) == 2 and "step 5/20" in shown[1] and "grade 0.90" in shown[1]
    assert "ended by patience" in shown[1] and " left" not in shown[1], "it seems to be running"


def test_an_ended_run_keeps_room_for_steps_that_never_come(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "rftkit.dashboard.dashboard_figure",
        lambda log, start, steps: drawn.append(steps) or dashboard_figure(log, start, steps),
    )
    dashboard = TrainingDashboard(show=lambda page: None)
    dashboard.begin(PLAN, [], look(0.2))
    for record in made_log(5):
        dashboard(record)
    dashboard.draw()
    dashboard.end(ENDED)
    assert drawn == [PLAN.steps, 0]
    assert dashboard_figure(made_log(5), look(0.2), 0).axes[0].get_xlim() == (0, 5)


def test_without_jupyter_there_is_silence():
    assert not in_jupyter()
    said = []
    dashboard = TrainingDashboard(say=said.append)
    dashboard.begin(PLAN, made_log(4), look(0.2))
    log = made_log(10)
    log[6]["alarms"] = [{"name": "entropy collapse", "cause": "flat"}]
    for record in log[4:]:
        dashboard(record)
        dashboard.answers(record, [])
    dashboard.end(ENDED)
    assert said[0] == "because of this" and said[1].startswith("step 5/20")
    assert said[3] == "  alarm: entropy collapse. flat" and len(said) == 5
