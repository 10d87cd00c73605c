"""The sandbox as its users meet it: graders, weak machines, and its own mishaps."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # comes with accelerate
import pytest

from rftkit.files import UserError
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.sandbox import isolation, runner
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner, python_runner, report

ECHO = "def grade(sample, item):\n    return item['number']\n"
SLEEP = "import time\ndef grade(sample, item):\n    time.sleep(60)\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="sandbox: this machine lacks Linux")


@pytest.fixture(scope="module")
def run():
    return python_runner(allow_weak_isolation=True)


@pytest.fixture
def small():
    """A runner of this test alone."""
    runner = Runner(Limits(seconds=60), workers=2)
    yield runner
    runner.close()


def test_grades_of_several_threads_and_texts_stay_apart(run):
    texts = [ECHO, "import math\n" + ECHO, ECHO.replace("]", "] + 1000")]
    with ThreadPoolExecutor(8) as pool:
        grades = pool.map(lambda n: run(texts[n % 3], {}, {"number": n}).value, range(60))
    assert list(grades) == [n + 1000 * (n % 3 == 2) for n in range(60)]


def test_an_error_shows_the_line_and_none_of_our_frames(run):
    source = (
        "def half(x):\n    return x / 0\n\ndef grade(sample, item):\n    return half(item['a'])\n"
    )
    error = run(source, {}, {"a": 1}).runtime_error
    assert error.startswith("Traceback") and error.endswith("ZeroDivisionError: division by zero")
    assert 'File "grader.py", line 5, in grade' in error and "return x / 0" in error
    assert "sandbox" not in error


def test_rows_arrive_as_they_were(run):
    item = {"a": "\ud800 ü", "b": [1, 2.5, None, True], "c": {"d": float("inf")}}
    same = f"item == {item!r} and sample['output_text'] == 'x' * 300_000".replace("inf", "1e999")
    source = f"def grade(sample, item):\n    return {same}\n"
    assert run(source, {"output_text": "x" * 300_000}, item).value == 1.0
    assert run(source, {}, {"a": {1, 2}}).server_error.startswith("request: ")


COMPUTES = """
import numpy, scipy.stats, sympy, pandas, rapidfuzz, jsonschema
import asyncio, os, tempfile, threading
async def one():
    return 1.0
def grade(sample, item):
    with tempfile.TemporaryDirectory() as folder:
        numpy.save(os.path.join(folder, "a.npy"), numpy.linalg.svd(numpy.ones((200, 200)))[1])
        assert numpy.load(os.path.join(folder, "a.npy")).shape == (200,)
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(one())))
    thread.start(); thread.join()
    return found[0]
"""


@linux
def test_a_grader_may_use_libraries_write_and_start_threads(run):
    outcome = run(COMPUTES, {}, {})
    assert outcome.value == 1.0, outcome


@linux
def test_a_server_killed_in_a_grade_is_no_zero(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.tempfile, "gettempdir", lambda: str(tmp_path))
    grader = Grader.load({"type": "python", "source": SLEEP}, GraderSettings(python_runner=small))

    def kill_the_server():
        while len(started := processes_named(str(tmp_path))) < 3:
            time.sleep(0.01)
        os.kill(min(started), signal.SIGKILL)  # the launcher, as an operator might

    threading.Thread(target=kill_the_server).start()
    report = grader.run({"number": 1}, "x")
    assert report["reward"] is None
    assert report["metadata"]["errors"]["python_grader_server_error"] is True
    assert small(ECHO, {}, {"number": 3}).value == 3.0


def processes_named(part: str) -> list[int]:
    """Processes whose working folder has `part` in its path."""
    return [p.pid for p in psutil.process_iter(["cwd"]) if part in (p.info["cwd"] or "")]


@linux
def test_the_answer_to_an_interrupted_question_meets_nobody(small, monkeypatch):
    assert small(ECHO, {}, {"number": 1}).value == 1.0

    def interrupt(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.server, "read_message", interrupt)
        small(ECHO, {}, {"number": 2})
    assert small(ECHO, {}, {"number": 3}).value == 3.0


USER = """
import sys
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner
run = Runner(Limits(seconds=60, namespaces=sys.argv[2] == "True"), 1)
write = "import time\\ndef grade(sample, item):\\n    open('f', 'w').write('x')\\n    "
print(run(write + "return 1.0", {}, {}).value, flush=True)
if sys.argv[1] == "killed":
    run(write + "time.sleep(1000)", {}, {})
"""


@linux
@pytest.mark.parametrize(
    ("how", "with_mount"), [("ends", True), ("killed", True), ("killed", False)]
)
def test_no_folder_and_no_process_outlives_its_user(tmp_path, how, with_mount):
    words = [sys.executable, "-W", "error", "-X", "dev", "-c", USER, how, str(with_mount)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=environment, stdout=-1, stderr=-1, text=True) as user:
        assert user.stdout.readline() == "1.0\n"
        if how == "killed":
            time.sleep(0.5)
            _launcher, server, _child = sorted(processes_named(str(tmp_path)))
            user.send_signal(signal.SIGSTOP)
            os.kill(server, signal.SIGKILL)  # neither of them can remove anything now
            user.kill()
        errors = user.stderr.read()
    assert errors == ""  # no warning of a process that still runs
    patience = time.monotonic() + 120  # only against a hang
    while os.listdir(tmp_path) or processes_named(str(tmp_path)):
        assert time.monotonic() < patience, os.listdir(tmp_path)
        time.sleep(0.05)


@linux
def test_what_the_kernel_offers_is_used():
    """Asked of the kernel without the code that uses it."""
    has_landlock = ctypes.CDLL(None).syscall(444, None, ctypes.c_long(0), 1) > 0
    if not has_landlock or not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        pytest.skip("sandbox: this machine lacks Landlock or seccomp")
    assert report().strong and report().reason == ""
    held = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    if held >> 6 & held >> 7 & held >> 21 & 1:  # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
        assert all(report().protections.values())
        assert "network namespace" in report().protections["network"]
        assert any("tmpfs" in means for means in report().protections["disk"])


@pytest.fixture
def elsewhere(monkeypatch):
    """As on macOS and Windows: no server, a new interpreter each time."""
    monkeypatch.setattr(runner, "has_server", lambda: False)
    report.cache_clear()
    yield Runner(Limits(seconds=60, reply=50_000), workers=2)
    report.cache_clear()


def test_a_machine_without_protections_refuses(elsewhere):
    assert not report().strong
    with pytest.raises(UserError, match="files and network.*allow_weak_isolation=True"):
        python_runner()


ALONE = [  # the last is stopped
    (ECHO, "value", 0.5),
    ("1 / 0\n" + ECHO, "failed_to_load", True),
    ("import os\ndef grade(s, i):\n    os._exit(4)", "runtime_error", "exit code 4"),
    ("import os\ndef grade(s, i):\n    return 'KEY' in os.environ", "value", 0.0),
    ("import os\ndef grade(s, i):\n    for n in range(3, 9):\n        try:\n"
     "            os.write(n, bytes(60_000))\n        except OSError:\n            pass",
     "runtime_error", "larger than 50,000 bytes"),
    (SLEEP, "runtime_error", "ran longer than 2 s"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "field", "expected"), ALONE)
def test_a_new_interpreter_grades_the_same(elsewhere, monkeypatch, source, field, expected):
    monkeypatch.setenv("KEY", "sk-not-for-you")
    elsewhere.limits = elsewhere.limits._replace(seconds=2 if source == SLEEP else 60)
    found = getattr(elsewhere(source, {}, {"number": 0.5}), field)
    assert expected in found if isinstance(expected, str) else found == expected


def test_installed_datasets_are_not_readable(tmp_path):
    """rftkit in site-packages: its neighbours are readable, itself is not."""
    for name in ("numpy/core.py", "rftkit/_datasets/task/test.jsonl", "six.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    rights = isolation.readable_paths([str(tmp_path)], str(tmp_path / "rftkit"))
    whole, names_only = 4 | 8, 8  # LANDLOCK_ACCESS_FS_READ_FILE and READ_DIR
    expected = {tmp_path: names_only, tmp_path / "numpy": whole, tmp_path / "six.py": whole}
    assert rights == {str(path): right for path, right in expected.items()}


@pytest.mark.parametrize(
    ("processor", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_calls_have_the_numbers_of_the_kernels_headers(processor, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"this machine lacks {path}")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", path.read_text()))
    aliases = {"newfstatat": "fstatat", "newfstat": "fstat"}  # of the generic table
    for name, number in isolation.numbers(processor).items():
        assert int(defined.get(name) or defined[aliases[name]]) == number, name
