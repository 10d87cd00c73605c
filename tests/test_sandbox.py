"""The sandbox as its users meet it: graders, programs, weak machines, and its own mishaps."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from rftkit import cli
from rftkit.files import UserError
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.sandbox import isolation, process, runner, seccomp
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner, python_runner, report, run_program

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


def test_the_limits_are_those_of_the_contract():
    assert Limits() == (120.0, 2_000_000_000, 1_000_000_000, 1_000_000, 64, 128)


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
    assert run(source, {}, {"a": {1, 2}}).server_error_type == "request"


@linux
@pytest.mark.parametrize("library", "numpy scipy.stats sympy pandas rapidfuzz jsonschema".split())
def test_libraries_of_the_grader_image_work_inside(run, library):
    source = f"import {library}\ndef grade(sample, item):\n    return 1.0\n"
    assert run(source, {}, {}).value == 1.0, run(source, {}, {})


@linux
def test_a_grader_may_compute_write_and_start_threads(run):
    source = (
        "import numpy, os, threading, tempfile, asyncio\n"
        "async def one():\n    return 1.0\n"
        "def grade(sample, item):\n"
        "    a = numpy.linalg.svd(numpy.ones((200, 200)))[1]\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        numpy.save(os.path.join(folder, 'a.npy'), a)\n"
        "        assert numpy.load(os.path.join(folder, 'a.npy')).shape == (200,)\n"
        "    found = []\n"
        "    thread = threading.Thread(target=lambda: found.append(asyncio.run(one())))\n"
        "    thread.start(); thread.join()\n"
        "    return found[0] * threading.active_count()\n"
    )
    outcome = run(source, {}, {})
    assert outcome.value == 1.0, outcome


@pytest.mark.parametrize(
    ("source", "stdin", "printed"),
    [
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", "1 2 3", "6\n"),
        ("import sys\nprint(len(sys.stdin.buffer.read()))", "ü", "2\n"),
        ("if __name__ == '__main__':\n    print('main')\nexit(0)", "", "main\n"),
        ("print('ü', '\\ud800')", "", "ü \\ud800\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))", "",
         "A(x=1)\n"),
    ],
)  # fmt: skip
def test_a_program_reads_its_case_and_prints_its_answer(source, stdin, printed):
    outcome = run_program(source, stdin, allow_weak_isolation=True)
    assert outcome.value == printed, outcome


@linux
def test_a_server_killed_in_a_grade_is_no_zero(small, tmp_path, monkeypatch):
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: str(tmp_path))
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
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [int(pid)] if part in os.readlink(f"/proc/{pid}/cwd") else []
        except OSError:
            continue
    return found


@linux
def test_the_answer_to_an_interrupted_question_meets_nobody(small, monkeypatch):
    assert small(ECHO, {}, {"number": 1}).value == 1.0

    def interrupt(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(process.server, "read_message", interrupt)
        small(ECHO, {}, {"number": 2})
    assert small(ECHO, {}, {"number": 3}).value == 3.0


USER = """
import sys
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner
run = Runner(Limits(seconds=60), 1, may_unshare=sys.argv[2] == "True")
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
            assert os.listdir(tmp_path) and processes_named(str(tmp_path))
            user.kill()
        errors = user.stderr.read()
    assert errors == ""  # no warning of a process that still runs
    patience = time.monotonic() + 120  # only against a hang
    while os.listdir(tmp_path) or processes_named(str(tmp_path)):
        assert time.monotonic() < patience, os.listdir(tmp_path)
        time.sleep(0.05)


def test_the_commands_report_an_attack_and_the_protections(tmp_path):
    answer = CliRunner().invoke(cli.app, ["environment", "--json"])
    found = json.loads(answer.stdout)["sandbox"]
    assert found["isolation"] in ("strong", "weak") and found["protections"]["time"]
    assert f"{found['isolation']} isolation" in CliRunner().invoke(cli.app, ["environment"]).stdout
    if found["isolation"] == "weak":
        pytest.skip("sandbox: this machine lacks protection of files or network")
    attack = "def grade(sample, item):\n    return len(open('/etc/passwd').read())\n"
    (tmp_path / "grader.json").write_text(json.dumps({"type": "python", "source": attack}))
    words = ["grade", "--grader", str(tmp_path / "grader.json"), "--sample", "x", "--json"]
    answer = CliRunner().invoke(cli.app, words)
    found = json.loads(answer.stdout)
    assert answer.exit_code == 0 and found["reward"] == 0.0
    assert found["metadata"]["errors"]["python_grader_runtime_error"] is True


@linux
def test_what_the_kernel_offers_is_used():
    """Asked of the kernel without the code that uses it."""
    import ctypes

    has_landlock = ctypes.CDLL(None).syscall(444, None, ctypes.c_long(0), 1) > 0
    has_seccomp = os.path.exists("/proc/sys/kernel/seccomp/actions_avail")
    if not has_landlock or not has_seccomp or seccomp.numbers() is None:
        pytest.skip("sandbox: this machine lacks Landlock, seccomp, or a processor that we know")
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    found = report()
    assert found.strong and found.reason == ""
    if held >> 6 & held >> 7 & held >> 21 & 1:  # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
        assert all(found.protections.values())
        assert "network namespace" in found.protections["network"]
        assert any("tmpfs" in means for means in found.protections["disk"])


@pytest.fixture
def elsewhere(monkeypatch):
    """As on macOS and Windows: no server, a new interpreter each time."""
    monkeypatch.setattr(runner, "has_server", lambda: False)
    report.cache_clear()
    yield Runner(Limits(seconds=60, reply=50_000), workers=2)
    report.cache_clear()


def test_a_machine_without_protections_refuses(elsewhere):
    assert not report().strong and report().missing == ["files", "network"]
    for call in (python_runner, lambda: run_program("print(1)")):
        with pytest.raises(UserError, match="files and network.*allow_weak_isolation=True"):
            call()


ALONE = [
    (ECHO, "value", 0.5),
    ("1 / 0\n" + ECHO, "failed_to_load", True),
    ("import os\ndef grade(s, i):\n    os._exit(4)", "runtime_error", "exit code 4"),
    ("import os\ndef grade(s, i):\n    return 'KEY' in os.environ", "value", 0.0),
    ("def grade(s, i):\n    raise KeyError('x' * 10**6)", "runtime_error", "xxx"),
    ("import os\ndef grade(s, i):\n    for n in range(3, 9):\n        try:\n"
     "            os.write(n, bytes(60_000))\n        except OSError:\n            pass",
     "runtime_error", "larger than 50,000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "field", "expected"), ALONE)
def test_a_new_interpreter_grades_the_same(elsewhere, monkeypatch, source, field, expected):
    monkeypatch.setenv("KEY", "sk-not-for-you")
    found = getattr(elsewhere(source, {}, {"number": 0.5}), field)
    assert expected in found if isinstance(expected, str) else found == expected


def test_a_new_interpreter_is_stopped_in_time(elsewhere):
    elsewhere.limits = Limits(seconds=2)
    assert "ran longer than 2 s" in elsewhere(SLEEP, {}, {}).runtime_error


def test_installed_datasets_are_not_readable(tmp_path):
    """rftkit in site-packages: its neighbours are readable, itself is not."""
    for name in ("numpy/core.py", "rftkit/_datasets/task/test.jsonl", "six.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    rights = isolation.readable_paths([str(tmp_path)], str(tmp_path / "rftkit"))
    whole, names_only = 4 | 8, 8  # LANDLOCK_ACCESS_FS_READ_FILE and READ_DIR
    expected = {tmp_path: names_only, tmp_path / "numpy": whole, tmp_path / "six.py": whole}
    assert rights == {str(path): right for path, right in expected.items()}


def decide(program: bytes, arch: int, number: int, arguments=()) -> int:
    """What the kernel would answer: the few BPF instructions that seccomp.py uses, run here."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    place = value = 0
    while steps[place][0] != 0x06:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand}[code]
            place += if_true if holds else if_false
    return steps[place][3]


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
# system call -> its number on both processors (from the kernel's tables), arguments, decisions of
# the server's and of the child's filter
CALLS = {
    "socket": (41, 198, (2, 1), EPERM, ALLOW),
    "execve": (59, 221, (), EPERM, ALLOW),
    "kill": (62, 129, (), ALLOW, EPERM),
    "ptrace": (101, 117, (), EPERM, ALLOW),
    "clone3": (435, 435, (), ENOSYS, ALLOW),
    "one from the future": (460, 460, (), ENOSYS, ALLOW),
    "clone as fork does": (56, 220, (0x01200011,), ALLOW, EPERM),
    "clone as a thread does": (56, 220, (0x003D0F00,), ALLOW, ALLOW),
    "mmap of shared memory": (9, 222, (0, 4096, 3, 0x21), EPERM, ALLOW),
    "openat to read": (257, 56, (0, 0, 0x80000), ALLOW, ALLOW),
    "openat to empty what is only read": (257, 56, (0, 0, 0x200), EPERM, ALLOW),
    "prlimit of another": (302, 261, (7,), EPERM, ALLOW),
    "prctl that outlives the server": (157, 167, (1,), ALLOW, EPERM),
    "sendto an address": (44, 206, (3, 0, 0, 0, 0x100000000, 16), EPERM, ALLOW),
    "ioctl TIOCSTI": (16, 29, (0, 0x5412), EPERM, ALLOW),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("processor", "arch", "column"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)]
)
def test_the_filter_decides_by_call_and_argument(processor, arch, column, call):
    *numbers, arguments, of_server, of_child = CALLS[call]
    programs = (seccomp.program_of_server, seccomp.program_of_child)
    answers = [decide(make(processor), arch, numbers[column], arguments) for make in programs]
    assert answers == [of_server, of_child]


def test_the_filter_ends_a_process_with_another_processors_calls():
    program = seccomp.program_of_server("x86_64")
    assert decide(program, 0x40000003, 0) == 0x80000000  # a 32-bit call: killed
    assert decide(program, 0xC000003E, 0x40000000) == ENOSYS  # x32
    assert seccomp.numbers("riscv64") is None
