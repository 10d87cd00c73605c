"""Hostile programs in the sandbox: each is contained, nobody else is harmed, the report says what
happened.

A program here is the text of a python grader. What a machine cannot prevent (no Landlock, no
seccomp) has its attacks skipped, with that reason.
"""

import os
import socket
import textwrap

import pytest

import rftkit
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner, report

# The time is generous, for a busy machine, except where running out of time is the point.
SMALL = Limits(
    seconds=60, memory=400_000_000, disk=8_000_000, reply=100_000, threads=24, open_files=64
)
REFUSED, TOO_LONG, CHANNEL = "Permission", "ran longer than", "wrote into the reply channel"
INVALID = "expected a finite number"


def needs(*protections: str) -> None:
    missing = [name for name in protections if not report().protections[name]]
    if missing:
        pytest.skip(f"sandbox: this machine lacks protection of {', '.join(missing)}")


@pytest.fixture(scope="module")
def runners():
    """short: for what must run out of time. bare: as in a container that gives no namespaces, so
    without a mount, and the disk is limited file by file."""
    made = {
        "usual": Runner(SMALL, workers=1),
        "short": Runner(SMALL._replace(seconds=1), workers=1),
        "bare": Runner(SMALL._replace(namespaces=False), workers=1),
    }
    yield made
    for runner in made.values():
        runner.close()


def grade(runner, source: str, item: dict | None = None) -> tuple[float | None, str]:
    """(reward, error) of one grade, from a report in the shape of graders/run."""
    spec = {"type": "python", "name": "attack", "source": source}
    found = Grader.load(spec, GraderSettings(python_runner=runner)).run(item or {}, "an answer")
    errors = found["metadata"]["errors"]
    assert errors["python_grader_runtime_error"] or found["reward"] is not None, errors
    return found["reward"], errors["python_grader_runtime_error_details"] or ""


def grader_of(body: str, result: str = "1.0", before: str = "") -> str:
    """A text whose grade() runs `body` and returns `result`, for which the attack must not live."""
    body = textwrap.indent(body, "    ")
    return f"{before}\ndef grade(sample, item):\n{body}\n    return {result}\n"


# protection -> {program: what the report must say}. The item holds "folder", a folder of ours with
# train.jsonl, "own" (the package), "pid" (this process), "port" (we listen).
BEFORE = """
import ctypes, os, mmap, resource, signal, socket, struct, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def send(data):
    for number in range(64):
        try:
            os.write(number, data)
        except OSError:
            pass
"""
ATTACKS = {
    "files": dict.fromkeys(
        ["open('/etc/passwd').read()", "open(item['folder'] + '/train.jsonl').read()",
         "open(item['own']).read()", "open(f\"/proc/{item['pid']}/environ\")", "os.listdir('..')",
         "open(item['folder'] + '/new', 'w')", "os.unlink(item['folder'] + '/train.jsonl')",
         "os.symlink(item['folder'], 'link')", "open(os.__file__, 'a')",
         "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)"],
        REFUSED,
    ),
    "environment": {"os.environ['OPENAI_API_KEY']": "KeyError"},
    "disk": {
        "f = open('big', 'wb')\nfor _ in range(2000): f.write(bytes(10**6))": "File too large",
        "f = os.open('f', os.O_CREAT | os.O_RDWR)\n"  # blocks beyond the end of a file
        "call('fallocate', f, 1, ctypes.c_long(0), ctypes.c_long(100_000_000))": REFUSED,
    },
    "network": dict.fromkeys(
        ["socket.create_connection(('127.0.0.1', item['port']), 1)",
         "socket.socket(socket.AF_UNIX).connect('x')",
         "pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
         "pair[0].sendto(b'x', '\\0name')"],
        REFUSED,
    ),
    "processes": dict.fromkeys(
        ["while True: os.fork()", "subprocess.run(['/bin/ls'], check=True)",
         "os.execv(sys.executable, ['python'])", "os.kill(item['pid'], signal.SIGKILL)",
         "call('ptrace', 16, os.getppid(), 0, 0)", "call('unshare', 0x10000000)",
         "call('prctl', 1, 0)  # outlives the server",
         "call('ioctl', 0, 0x5412, b'x')  # types into a terminal",
         "resource.prlimit(item['pid'], resource.RLIMIT_CPU)",
         "mmap.mmap(-1, 4096)  # memory shared with the next grade",
         "os.write(os.memfd_create('x'), b'x')  # memory that no limit counts"],
        REFUSED,
    ),
    "threads": {
        "threading.stack_size(32768)  # so that memory is not what stops it\n"
        "while True: threading.Thread(target=threading.Event().wait, daemon=True).start()":
        "can't start new thread",
    },
    "memory": {
        "kept = [open(os.devnull) for _ in range(10_000)]": "Too many open files",
        "kept = []\nwhile True: kept.append(bytearray(10**7))": "MemoryError",
    },
    "time": {
        "while True: pass": TOO_LONG, "os.closerange(0, 64)\nwhile True: pass": "Killed",
        "sys.exit(0)": "SystemExit", "os._exit(0)": "exit code 0",
        "class Last:\n    def __del__(self): os._exit(7)\nlast = Last()": "exit code 7",
        "def f(n): return f(n + 1)\nf(0)": "RecursionError", "ctypes.string_at(0)": "Segmentation",
        "sys.setrecursionlimit(10**9)\n"
        "class A:\n    def __getattr__(self, name): return getattr(self, name)\nA().x":
        ("Segmentation", "RecursionError", "MemoryError"),
    },
    "reply": {
        "send(bytes(16) + b'F' + struct.pack('<d', 1.0))\nos._exit(0)": CHANNEL,
        "send(b'x')": CHANNEL,  # and then comes the true reply
        "answer = struct.pack('<ci?', b'D', 0, False) + b'+' + bytes(25)\n"  # the server's
        "send(struct.pack('<I', len(answer)) + answer)\nos._exit(0)": CHANNEL,
        "while True: send(bytes(60_000))": "larger than 100,000 bytes",
        "raise ValueError('x' * 10**7)": "xxx",
        "class Mute(Exception):\n    def __str__(self): os._exit(9)\nraise Mute": "exit code 9",
    },
}  # fmt: skip
CASES = [(kind, program) for kind in ATTACKS for program in ATTACKS[kind]]


@pytest.mark.parametrize(("protection", "program"), CASES)
def test_an_attack_is_contained_and_reported(runners, tmp_path, monkeypatch, protection, program):
    needs(*{protection} & report().protections.keys())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    (tmp_path / "train.jsonl").write_text('{"answer": "SCN1A"}\n')
    expected = ATTACKS[protection][program]
    runner = runners["short" if expected == TOO_LONG else "usual"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        item = {"folder": str(tmp_path), "own": rftkit.__file__}
        item |= {"pid": os.getpid(), "port": listener.getsockname()[1]}
        reward, error = grade(runner, grader_of(program, before=BEFORE), item)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody was harmed: the listener
            listener.accept()
    assert reward == 0.0, "no grade, or the attack worked"
    assert any(text in error for text in ([expected] if isinstance(expected, str) else expected))
    assert len(error) < 30_000 and "sk-not-for-you" not in error and "SCN1A" not in error
    # the file, and the next grade
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"answer": "SCN1A"}\n']
    assert grade(runner, grader_of("pass", "0.25")) == (0.25, "")


FILLS = [  # the last two show no folder what they take
    "for n in range(100): open(str(n), 'wb').write(block)",
    "kept = []\nfor n in range(20):\n    kept.append(open('f', 'wb', buffering=0))\n"
    "    os.unlink('f')\n"
    "    assert kept[-1].write(block) == 10**6, os.write(kept[-1].fileno(), block)",
    "for n in range(10_050): open(str(n), 'w').close()",
]


@pytest.mark.parametrize("program", FILLS)
def test_the_disk_holds_no_more_than_its_limit(runners, program):
    if not any("tmpfs" in means for means in report().protections["disk"]):
        pytest.skip("sandbox: this machine lacks a file system of the scratch folder's own")
    before = "import mmap, os\nblock = bytes(10**6)"
    reward, error = grade(runners["usual"], grader_of(program, before=before))
    assert reward == 0.0 and "No space left" in error
    # nothing of it is left for the next one, which may fill the disk to its limit
    fill = "found = os.listdir('.')\nopen('f', 'wb', buffering=0).write(8 * block)"
    assert grade(runners["usual"], grader_of(fill, "len(found)", before)) == (0.0, "")


COUNTER = """
import builtins, os, threading, time
calls = [0]
def grade(sample, item):
    exec(item.get("attack", ""), globals())
    return {check}
"""
LISTED = "float(len(os.listdir('.')))"
STATES = [  # what a grade does, and what the next one returns: 0, unless something was left
    ("calls[0] += 1", "float(calls[0])"),
    ("builtins.len = lambda x: 1", "float(len([]))"),
    ("os.makedirs('a/b')\nopen('a/b/left', 'w')", LISTED),
    ("os.makedirs('closed', 0)", LISTED),
    ("for _ in range(300): os.mkdir('d'); os.chdir('d')", LISTED),
    ("os.mkdir('x'); os.chdir('x')", "float(os.getcwd().endswith('/x'))"),
    ("os.environ['LEFT'] = '1'", "float('LEFT' in os.environ)"),
    ("os.umask(0o777)", "float(os.umask(0) == 0o777)"),
    ("late = lambda: [time.sleep(.01), setattr(builtins, 'left', 1)]\n"
     "threading.Thread(target=late).start()", "float(hasattr(builtins, 'left'))"),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "check"), STATES)
@pytest.mark.parametrize("way", ["usual", "bare"])
def test_one_grade_does_not_change_the_next(runners, way, attack, check):
    source = COUNTER.format(check=check)
    for did in ("", attack, ""):
        found = grade(runners[way], source, {"attack": did})
        assert did or found == (0.0, "")


LIAR = """
class Liar({base}):
    def __float__(self): return 1.0
    def __eq__(self, other): return True
    def __index__(self): return 1
    def __add__(self, other): return 1.0
"""
PRETENDER = """
class Pretender:
    __class__ = property(lambda self: float)
    def __float__(self): return 1.0
    def __repr__(self): raise SystemExit
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
    def __instancecheck__(self, other): return True
class Odd(metaclass=Meta): pass
"""
PATCHES = """
import builtins, struct, os
builtins.float = builtins.issubclass = builtins.type = os._exit = os.write = lambda *a: 1.0
struct.pack = lambda *a: b'x' * 8
"""
NUMBERS = [
    (LIAR.format(base="float"), "Liar(0.25)", 0.25), (LIAR.format(base="int"), "Liar(0)", 0.0),
    (LIAR.format(base="float"), "Liar('nan')", INVALID), (PRETENDER, "Pretender()", INVALID),
    (PRETENDER, "Odd()", INVALID), (PATCHES, "0.25", 0.25), ("", "10**400", INVALID),
    ("", "1 << 10**6", INVALID), ("", "'1.0'", INVALID), ("", "True", 1.0),
    ("import numpy", "numpy.float64(0.5)", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("before", "value", "expected"), NUMBERS)
def test_a_number_is_what_its_bytes_are(runners, before, value, expected):
    reward, error = grade(runners["usual"], grader_of("pass", value, before))
    fault = expected if isinstance(expected, str) else ""
    assert reward == (0.0 if fault else expected)
    assert fault in error and bool(fault) == bool(error) and len(error) < 500


AT_LOADING = {
    "while True: pass": TOO_LONG,
    "import os\nos._exit(0)": "ended its process",
    "open('/etc/passwd')": REFUSED,
}


@pytest.mark.parametrize("before", AT_LOADING)
def test_a_text_that_fails_to_load_blames_no_sample(runners, before):
    needs("files", "processes")
    runner = runners["short" if AT_LOADING[before] == TOO_LONG else "usual"]
    reward, error = grade(runner, grader_of("pass", before=before))
    assert reward is None and AT_LOADING[before] in error
