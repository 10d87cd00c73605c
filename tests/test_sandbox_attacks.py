"""Hostile programs in the sandbox: each is contained, nobody else is harmed, the report says what
happened.

A program here is the text of a python grader. What a machine cannot prevent (no Landlock, no
seccomp) has its attacks skipped, with that reason.
"""

from __future__ import annotations

import os
import socket
import textwrap

import pytest

import rftkit
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner, report, run_program

# The time is generous, for a busy machine, except where running out of time is the point.
SMALL = Limits(
    seconds=60, memory=400_000_000, disk=8_000_000, reply=100_000, threads=24, open_files=64
)
REFUSED, TOO_LONG, FULL = "Permission", "ran longer than", "No space left"
CHANNEL = "wrote into the reply channel"


def needs(*protections: str) -> None:
    missing = [name for name in protections if not report().protections[name]]
    if missing:
        pytest.skip(f"sandbox: this machine lacks protection of {', '.join(missing)}")


def runner_of(limits: Limits, **settings):
    runner = Runner(limits, workers=1, **settings)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def runner():
    yield from runner_of(SMALL)


@pytest.fixture(scope="module")
def short():
    """For those that must run out of time."""
    yield from runner_of(SMALL._replace(seconds=1))


@pytest.fixture(scope="module")
def without_namespaces():
    """As in a container that gives none: no mount, so the disk is limited file by file."""
    yield from runner_of(SMALL, may_unshare=False)


@pytest.fixture(scope="module")
def listener():
    """A server of ours that no attack may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """What an attacker would like to have: a training file, a key in our environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    (tmp_path / "train.jsonl").write_text('{"answer": "SCN1A"}\n')
    return tmp_path


def grade(runner, source: str, item: dict | None = None) -> tuple[float | None, str]:
    """(reward, error) of one grade, from a report in the shape of graders/run."""
    spec = {"type": "python", "name": "attack", "source": source}
    found = Grader.load(spec, GraderSettings(python_runner=runner)).run(item or {}, "an answer")
    errors = found["metadata"]["errors"]
    assert errors["python_grader_runtime_error"] or found["reward"] is not None, errors
    return found["reward"], errors["python_grader_runtime_error_details"] or ""


def grader_of(body: str, result: str = "1.0", before: str = "") -> str:
    """A text whose grade() runs `body` and returns `result`, for which the attack must not live."""
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return f"{before}\ndef grade(sample, item):\n{body}\n    return {result}\n"


IMPORTS = "import ctypes, os, mmap, resource, signal, socket, struct, subprocess, sys, threading"
LIBC = """
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""
# protection -> {name: (program, what the report must say)}. The item holds "folder", a folder of
# ours with train.jsonl, "home", "own" (the package), "pid" (this process), "port" (we listen).
ATTACKS = {
    "files": {
        "reads /etc/passwd": ("open('/etc/passwd').read()", REFUSED),
        "reads the training file": ("open(item['folder'] + '/train.jsonl').read()", REFUSED),
        "reads the package": ("open(item['own']).read()", REFUSED),
        "lists our folder": ("os.listdir(item['folder'])", REFUSED),
        "writes beside the training file": ("open(item['folder'] + '/new', 'w')", REFUSED),
        "removes the training file": ("os.unlink(item['folder'] + '/train.jsonl')", REFUSED),
        "links out of the scratch folder": ("os.symlink(item['folder'], 'link')", REFUSED),
        "climbs out of the scratch folder": ("os.listdir('..')", REFUSED),
        "reads another process's memory map": ("open('/proc/self/maps').read()", REFUSED),
        "reads our environment from /proc": ("open(f\"/proc/{item['pid']}/environ\")", REFUSED),
        "opens a library to write": ("open(os.__file__, 'a')", REFUSED),
    },
    "environment": {"reads our key": ("os.environ['OPENAI_API_KEY']", "KeyError")},
    "disk": {
        "one file of 2 GB": (
            "f = open('big', 'wb')\nfor _ in range(2000):\n    f.write(bytes(10**6))",
            "File too large",
        ),
        "blocks beyond the end of a file": (
            "file = os.open('f', os.O_CREAT | os.O_RDWR)\n"
            "call('fallocate', file, 1, ctypes.c_long(0), ctypes.c_long(100_000_000))",
            REFUSED,
        ),
    },
    "network": {
        "a TCP connection": ("socket.create_connection(('127.0.0.1', item['port']), 1)", REFUSED),
        "a UDP packet": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", REFUSED),
        "calls a local socket": ("socket.socket(socket.AF_UNIX).connect('x')", REFUSED),
        "sends to a name through a socket pair": (
            "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0name')",
            REFUSED,
        ),
    },
    "processes": {
        "a fork bomb": ("while True:\n    os.fork()", REFUSED),
        "starts a program": ("subprocess.run(['/bin/ls'], check=True)", REFUSED),
        "becomes another program": ("os.execv(sys.executable, ['python'])", REFUSED),
        "kills its parent": ("os.kill(os.getppid(), signal.SIGKILL)", REFUSED),
        "kills this process": ("os.kill(item['pid'], signal.SIGKILL)", REFUSED),
        "traces its parent": ("call('ptrace', 16, os.getppid(), 0, 0)", REFUSED),
        "enters new namespaces": ("call('unshare', 0x10000000)", REFUSED),
        "memory that no limit counts": ("os.write(os.memfd_create('x'), b'x')", REFUSED),
    },
    "threads": {
        "a thread bomb": (
            "threading.stack_size(32768)  # so that memory is not what stops it\n"
            "for _ in range(1000):\n"
            "    threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "can't start new thread",
        )
    },
    "memory": {
        "open files without end": (
            "kept = [open(os.devnull) for _ in range(10_000)]",
            "Too many open files",
        ),
        "memory without end": (
            "kept = []\nwhile True:\n    kept.append(bytearray(10**7))",
            "MemoryError",
        ),
        "one huge piece of memory": ("kept = 'x' * 10**11", "MemoryError"),
    },
    "time": {
        "an endless loop": ("while True:\n    pass", TOO_LONG),
        "closes everything and stays": ("os.closerange(0, 64)\nwhile True:\n    pass", "Killed"),
        "raises SystemExit": ("sys.exit(0)", "SystemExit"),
        "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        "ends its process": ("os._exit(0)", "exit code 0"),
        "exits in a destructor": (
            "class Last:\n    def __del__(self):\n        os._exit(7)\nlast = Last()",
            "exit code 7",
        ),
        "recursion": ("def f(n):\n    return f(n + 1)\nf(0)", "RecursionError"),
        "recursion without a limit": (
            "sys.setrecursionlimit(10**9)\n"
            "class A:\n    def __getattr__(self, name):\n        return getattr(self, name)\n"
            "A().x",
            ("Segmentation", "RecursionError", "MemoryError"),
        ),
        "crashes the interpreter": ("ctypes.string_at(0)", "Segmentation"),
    },
    "reply": {
        "forges a reply on all files": (
            "for n in range(64):\n"
            "    if exists(n):\n        os.write(n, bytes(16) + b'F' + struct.pack('<d', 1.0))\n"
            "os._exit(0)",
            CHANNEL,
        ),
        "writes before the true reply": (
            "[os.write(n, b'x') for n in range(3, 64) if exists(n)]",
            CHANNEL,
        ),
        "forges the answer of the server": (
            "answer = struct.pack('<ci?', b'D', 0, False) + b'+' + bytes(25)\n"
            "for n in range(64):\n"
            "    if exists(n):\n        os.write(n, struct.pack('<I', len(answer)) + answer)\n"
            "os._exit(0)",
            CHANNEL,
        ),
        "a reply beyond the limit": (
            "while True:\n    [os.write(n, bytes(60_000)) for n in range(3, 64) if exists(n)]",
            "larger than 100,000 bytes",
        ),
        "an error text without end": ("raise ValueError('x' * 10**7)", "xxx"),
        "an error that cannot be told": (
            "class Mute(Exception):\n    def __str__(self):\n        os._exit(9)\nraise Mute",
            "exit code 9",
        ),
    },
}
EXISTS = """
def exists(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False
"""


@pytest.mark.parametrize(
    ("protection", "name"), [(kind, name) for kind in ATTACKS for name in ATTACKS[kind]]
)
def test_an_attack_is_contained_and_reported(runner, short, secrets, listener, protection, name):
    needs(*{protection} & report().protections.keys())
    program, expected = ATTACKS[protection][name]
    item = {
        "folder": str(secrets),
        "home": os.path.expanduser("~"),
        "own": rftkit.__file__,
        "pid": os.getpid(),
        "port": listener.getsockname()[1],
    }
    source = grader_of(program, before=IMPORTS + LIBC + EXISTS)
    reward, error = grade(short if expected == TOO_LONG else runner, source, item)
    assert reward == 0.0, "no grade, or the attack worked"
    assert any(text in error for text in ([expected] if isinstance(expected, str) else expected))
    assert len(error) < 30_000 and "sk-not-for-you" not in error and "SCN1A" not in error
    # nobody was harmed: the file, the listener, and the next grade
    assert [path.read_text() for path in secrets.iterdir()] == ['{"answer": "SCN1A"}\n']
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert grade(runner, grader_of("pass", "0.25")) == (0.25, "")


# --- the disk, where no folder shows what is taken -----------------------------------------------

BLOCK = "import mmap, os\nblock = bytes(10**6)"
FILLS = {
    "many files": "for n in range(100):\n    open(str(n), 'wb').write(block)",
    "files that were unlinked": (
        "kept = []\n"
        "for n in range(20):\n"
        "    kept.append(open('f', 'wb', buffering=0))\n"
        "    os.unlink('f')\n"
        "    assert kept[-1].write(block) == 10**6, os.write(kept[-1].fileno(), block)"
    ),
    "unlinked files that only a map holds": (
        "maps = []\n"
        "for n in range(20):\n"
        "    with open('f', 'wb+', buffering=0) as file:\n"
        "        assert file.write(block) == 10**6, os.write(file.fileno(), block)\n"
        "        maps.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE))\n"
        "    os.unlink('f')"
    ),
    "empty files without end": "for n in range(10_050):\n    open(str(n), 'w').close()",
}


@pytest.mark.parametrize("name", FILLS)
def test_the_disk_holds_no_more_than_its_limit(runner, name):
    if not any("tmpfs" in means for means in report().protections["disk"]):
        pytest.skip("sandbox: this machine lacks a file system of the scratch folder's own")
    reward, error = grade(runner, grader_of(FILLS[name], before=BLOCK))
    assert reward == 0.0 and FULL in error
    # nothing of it is left for the next one, which may fill the disk to its limit
    fill = "found = os.listdir('.')\nopen('f', 'wb', buffering=0).write(8 * block)"
    assert grade(runner, grader_of(fill, "len(found)", BLOCK)) == (0.0, "")


# --- state: what one grade does, and what the next one finds -------------------------------------

COUNTER = """
import builtins, math, mmap, os, sys
calls = [0]
shared = {shared}
def helper():
    return 0.5
def grade(sample, item):
    exec(item.get("attack", ""), globals())
    return {check}
"""
LISTED = "float(len(os.listdir('.')))"
STATES = {
    "counts in a global": ("calls[0] += 1", "float(calls[0])", 0.0),
    "patches its own module": ("global helper\nhelper = lambda: 1.0", "helper()", 0.5),
    "replaces builtins": ("builtins.len = lambda x: 1", "float(len([]))", 0.0),
    "replaces a library's function": ("math.sqrt = lambda x: 1", "math.sqrt(.25)", 0.5),
    "leaves a file": ("os.makedirs('a/b')\nopen('a/b/left', 'w')", LISTED, 0.0),
    "leaves a closed folder": ("os.makedirs('closed', 0)", LISTED, 0.0),
    "leaves folders in folders": (
        "for _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')",
        LISTED,
        0.0,
    ),
    "changes the folder and the environment": (
        "os.mkdir('x'); os.chdir('x'); os.environ['LEFT'] = '1'; os.umask(0o777)",
        "float('LEFT' in os.environ or os.getcwd().endswith('/x'))",
        0.0,
    ),
    "leaves a thread": (
        "import threading, time\n"
        "threading.Thread(target=lambda: [time.sleep(.01), setattr(builtins, 'left', 1)]).start()",
        "float(hasattr(builtins, 'left'))",
        0.0,
    ),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("way", ["runner", "without_namespaces"])
def test_one_grade_does_not_change_the_next(request, way, name):
    one_at_a_time = request.getfixturevalue(way)
    attack, check, expected = STATES[name]
    source = COUNTER.format(check=check, shared=None)
    assert grade(one_at_a_time, source) == (expected, "")
    grade(one_at_a_time, source, {"attack": attack})
    assert grade(one_at_a_time, source) == (expected, "")


# --- numbers that lie ----------------------------------------------------------------------------

LIAR = """
class Liar({base}):
    def __float__(self): return 1.0
    def __repr__(self): return "1.0"
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __le__(self, other): return True
    def __index__(self): return 1
    def __add__(self, other): return 1.0
    def __mul__(self, other): return 1.0
"""
PRETENDER = """
class Pretender:
    __class__ = property(lambda self: float)
    def __float__(self): return 1.0
    def __repr__(self): raise SystemExit
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
    def __instancecheck__(self, other): return True
    def mro(self): return [*super().mro()]
class Odd(metaclass=Meta): pass
"""
INVALID = "expected a finite number"
NUMBERS = {
    "a float subclass": (LIAR.format(base="float"), "Liar(0.25)", 0.25),
    "an int subclass": (LIAR.format(base="int"), "Liar(0)", 0.0),
    "an object that claims to be a float": (PRETENDER, "Pretender()", INVALID),
    "a metaclass": (PRETENDER, "Odd()", INVALID),
    "NaN": ("", "float('nan')", INVALID),
    "NaN in a subclass": (LIAR.format(base="float"), "Liar('nan')", INVALID),
    "a huge whole number": ("", "10**400", INVALID),
    "a whole number of a million bits": ("", "1 << 10**6", INVALID),
    "a text that looks like a number": ("", "'1.0'", INVALID),
    "nothing": ("", "None", INVALID),
    "a bool": ("", "True", 1.0),
    "a numpy float": ("import numpy", "numpy.float64(0.5)", 0.5),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_what_its_bytes_are(runner, name):
    before, value, expected = NUMBERS[name]
    reward, error = grade(runner, grader_of("pass", value, before))
    if isinstance(expected, float):
        assert (reward, error) == (expected, "")
    else:
        assert reward == 0.0 and expected in error and len(error) < 500


def test_patched_builtins_forge_no_number(runner):
    """The child took what it needs before any text ran."""
    patches = (
        "builtins.float = builtins.issubclass = builtins.type = lambda *a: 1.0\n"
        "struct.pack = lambda *a: b'x' * 8\n"
        "os._exit = os.write = lambda *a: 1.0"
    )
    assert grade(runner, grader_of(patches, "0.25", "import builtins, struct, os")) == (0.25, "")


# --- the text itself, before any grade -----------------------------------------------------------

AT_LOADING = {
    "an endless loop": ("while True:\n    pass", TOO_LONG),
    "ends its process": ("import os\nos._exit(0)", "ended its process"),
    "raises": ("raise ValueError('no')", "ValueError: no"),
    "a library that is missing": ("import not_installed_here", "ModuleNotFoundError"),
    "reads a file": ("open('/etc/passwd')", REFUSED),
    "opens a connection": ("import socket\nsocket.socket()", REFUSED),
    "becomes another program": ("import os\nos.execv('/bin/ls', ['ls'])", REFUSED),
    "forks": ("import os\nos.fork()", REFUSED),
}


@pytest.mark.parametrize("name", AT_LOADING)
def test_a_text_that_fails_to_load_blames_no_sample(runner, short, name):
    needs("files", "network", "processes")
    before, expected = AT_LOADING[name]
    reward, error = grade(
        short if expected == TOO_LONG else runner, grader_of("pass", before=before)
    )
    assert reward is None and expected in error


# --- programs that a model wrote -----------------------------------------------------------------

PROGRAMS = {
    "open('/etc/passwd')": REFUSED,
    "import socket; socket.socket()": REFUSED,
    "import os; os.fork()": REFUSED,
    "while True: print('x' * 1000)": "MemoryError",
    "print('x' * 200_000)": "larger than 100,000 bytes",
    "import os; os.abort()": "ended by signal",
    "import sys; sys.exit('gone')": "gone",
    "import os; os._exit(70)": "exit code 70",
    "def f(:": "SyntaxError",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_a_model_is_contained(program):
    needs("files", "network", "processes")
    outcome = run_program(program, limits=SMALL)
    assert outcome.value is None and PROGRAMS[program] in outcome.runtime_error


def test_a_program_finds_nothing_but_its_case():
    needs("files", "processes")
    program = (
        "import gc, os, sys\n"
        "seen = repr(sys.argv) + repr(dict(os.environ)) + repr(os.listdir('.'))\n"
        "seen += repr([o for o in gc.get_objects() if isinstance(o, (dict, list))])[:10**6]\n"
        "print(input(), os.getcwd().count('/'), 'expected' + '-answer' in seen)\n"
    )
    expected = "the-expected-answer"  # the comparison happens here, on our side
    outcome = run_program(program, "a case", limits=SMALL)
    assert outcome.value == "a case 3 False\n" and outcome.value != expected, outcome
