"""Which verifiers of a task library run a shell command that stands in the model's answer?

    python -m venv apart && apart/bin/pip install reasoning-gym==0.1.25
    apart/bin/python benchmarks/careless_verifiers.py

Each data set's own `score_answer` gets answers that would write a file if they were evaluated. The
library is in none of this project's environments, so this script imports nothing of the project.
Record: datasets/recorded_runs/careless_verifiers.json.
"""

import json
import signal
import tempfile
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

import reasoning_gym
from reasoning_gym.factory import DATASETS

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "careless_verifiers.json"
SECONDS = 20  # for one verifier and answer


def runs(data_set, entry: dict, answer: str, written: Path) -> bool:
    written.unlink(missing_ok=True)
    signal.alarm(SECONDS)
    with suppress(Exception):  # what the verifier says of such an answer is of no interest
        data_set.score_answer(answer, entry)
    signal.alarm(0)
    return written.exists()


def give_up(*_) -> None:
    raise TimeoutError


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    written = Path(tempfile.mkdtemp()) / "written"
    call = f"__import__('os').system('touch {written}')"
    answers = (call, f"[{call}]", f"({call}, 1)", f"{call} + 0 == 0", f"{{'a': {call}}}")
    tried, careless = [], []
    for name in sorted(set(DATASETS) - {"composite"}):  # made of others
        data_set = reasoning_gym.create_dataset(name, size=1, seed=1)
        tried.append(name)
        if any(runs(data_set, data_set[0], answer, written) for answer in answers):
            careless.append(name)
    record = {"library": f"reasoning-gym {version('reasoning-gym')}", "tried": len(tried)}
    record |= {"careless": careless, "date": str(date.today())}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
