"""Hostile programs in the sandbox: each is contained, nobody else is harmed, the report says what
happened.

A program here is the text of a python grader. What a machine cannot prevent (no Landlock, no
seccomp) has its attacks skipped, and the number of those stands at the end of the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

from rftkit.graders.grader import Grader, GraderSettings
from rftkit.sandbox import process, report
from rftkit.sandbox.limits import Limits
from rftkit.sandbox.runner import Runner, python_runner, run_program

# The time is generous, for a busy machine, except where running out of time is the point.
SMALL = Limits(
    seconds=30, memory=400_000_000, disk=8_000_000, reply=100_000, threads=24, open_files=64
)
SHORT = SMALL._replace(seconds=0.5)
REFUSED, TOO_LONG = "Permission", "ran longer than 0.5 s"


def needs(*protections: str) -> None:
    """Skip where this machine lacks one of these; conftest.py counts what was skipped so."""
    missing = [name for name in protections if not report().protections.get(name)]
    if missing:
        pytest.skip(f"sandbox: this machine lacks protection of {', '.join(missing)}")


@pytest.fixture(scope="module")
def runners():
    """One for most programs, and one for those that must run out of time."""
    return [python_runner(limits=each, allow_weak_isolation=True) for each in (SMALL, SHORT)]


@pytest.fixture(scope="module")
def runner(runners):
    return runners[0]


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """What an attacker would like to have: a training file, a key in our environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    (tmp_path / "train.jsonl").write_text('{"answer": "SCN1A"}\n')
    return tmp_path


def grade(runner, source: str, item: dict | None = None) -> dict:
    """The report of one grade in the shape of graders/run."""
    spec = {"type": "python", "name": "attack", "source": textwrap.dedent(source)}
    return Grader.load(spec, GraderSettings(python_runner=runner)).run(item or {}, "an answer")


def details(found: dict) -> str:
    errors = found["metadata"]["errors"]
    return errors["python_grader_runtime_error_details"] or ""


def attempt(action: str) -> str:
    """A program that does something forbidden. It would score 1 if it worked."""
    body = textwrap.indent(textwrap.dedent(action).strip(), "    ")
    imports = "import os, sys, socket, subprocess, threading, ctypes, signal, mmap, shutil\n"
    return f"{imports}def grade(sample, item):\n{body}\n    return 1.0\n"


# name -> (what it needs, the program, what the report must say). The item holds "folder", a
# folder of ours with train.jsonl, "pid", this process, and "port", where we listen.
ATTACKS = {
    # --- files
    "reads /etc/passwd": ("files", "open('/etc/passwd').read()", REFUSED),
    "reads the training file": ("files", "open(item['folder'] + '/train.jsonl').read()", REFUSED),
    "reads the datasets of rftkit": ("files", "open(item['own']).read()", REFUSED),
    "lists our folder": ("files", "os.listdir(item['folder'])", REFUSED),
    "lists the home folder": ("files", "os.listdir(item['home'])", REFUSED),
    "writes beside the training file": (
        "files",
        "open(item['folder'] + '/new', 'w').write('x')",
        REFUSED,
    ),
    "empties the training file": (
        "files",
        "os.open(item['folder'] + '/train.jsonl', os.O_RDONLY | os.O_TRUNC)",
        REFUSED,
    ),
    "truncates by name": ("files", "os.truncate(item['folder'] + '/train.jsonl', 0)", REFUSED),
    "removes the training file": ("files", "os.unlink(item['folder'] + '/train.jsonl')", REFUSED),
    "opens it to others": ("files", "os.chmod(item['folder'] + '/train.jsonl', 0o777)", REFUSED),
    "a link out of the scratch folder": (
        "files",
        "os.symlink(item['folder'] + '/train.jsonl', 'link'); open('link').read()",
        REFUSED,
    ),
    "a hard link into it": (
        "files",
        "os.link(item['folder'] + '/train.jsonl', 'link'); open('link').read()",
        REFUSED,
    ),
    "climbs out of the scratch folder": ("files", "os.listdir('..')", REFUSED),
    "reads another process's memory map": ("files", "open('/proc/self/maps').read()", REFUSED),
    "opens a library to write": ("files", "open(os.__file__, 'a')", REFUSED),
    "writes one file of 2 GB": (
        "disk",
        "f = open('big', 'wb')\nfor _ in range(2000):\n    f.write(bytes(10**6))",
        "File too large",
    ),
    "writes many files": (
        "disk",
        "for n in range(100):\n    open(f'f{n}', 'wb').write(bytes(10**6))",
        "bytes were written to disk",
    ),
    "fills the disk while it runs": (
        "disk",
        "for n in range(10**9):\n    open(f'f{n % 50}', 'wb').write(bytes(10**6))",
        "bytes were written to disk",
    ),
    # --- environment
    "reads our environment": ("environment", "os.environ['OPENAI_API_KEY']", "KeyError"),
    "reads our environment from /proc": (
        "files",
        "open(f\"/proc/{item['pid']}/environ\").read()",
        REFUSED,
    ),
    # --- network
    "opens a TCP connection": (
        "network",
        "socket.create_connection(('127.0.0.1', item['port']), 1)",
        REFUSED,
    ),
    "sends a UDP packet": (
        "network",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        REFUSED,
    ),
    "listens": ("network", "socket.socket().bind(('', 0))", REFUSED),
    "calls a local socket": ("network", "socket.socket(socket.AF_UNIX).connect('x')", REFUSED),
    "sends to a name through a socket pair": (
        "network",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0name')",
        REFUSED,
    ),
    # --- processes
    "a fork bomb": ("processes", "while True:\n    os.fork()", REFUSED),
    "starts a program": ("processes", "subprocess.run(['/bin/ls'], check=True)", REFUSED),
    "becomes another program": ("processes", "os.execv(sys.executable, ['python'])", REFUSED),
    "kills its parent": ("processes", "os.kill(os.getppid(), signal.SIGKILL)", REFUSED),
    "kills this process": ("processes", "os.kill(item['pid'], signal.SIGKILL)", REFUSED),
    "kills everybody": ("processes", "os.kill(-1, signal.SIGKILL)", REFUSED),
    "traces its parent": (
        "processes",
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, os.getppid(), 0, 0):
            raise OSError(ctypes.get_errno(), 'ptrace')
        """,
        REFUSED,
    ),
    "takes the limits from its parent": (
        "processes",
        "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_AS, (0, 0))",
        REFUSED,
    ),
    "enters new namespaces": (
        "processes",
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x10000000):
            raise OSError(ctypes.get_errno(), 'unshare')
        """,
        REFUSED,
    ),
    "a thread bomb": (
        "threads",
        "threading.stack_size(32768)  # so that memory is not what stops it\n"
        "for _ in range(1000):\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "can't start new thread",
    ),
    "opens files without end": (
        "memory",
        "kept = [open(os.devnull) for _ in range(10_000)]",
        "Too many open files",
    ),
    # --- memory
    "takes memory without end": (
        "memory",
        "kept = []\nwhile True:\n    kept.append(bytearray(10**7))",
        "MemoryError",
    ),
    "one huge piece of memory": ("memory", "kept = 'x' * 10**11", "MemoryError"),
    "memory that no limit counts": (
        "processes",
        "os.write(os.memfd_create('x'), b'x')",
        REFUSED,
    ),
    # --- time
    "an endless loop": ("time", "while True:\n    pass", TOO_LONG),
    "sleeps": ("time", "import time\ntime.sleep(1000)", TOO_LONG),
    "a loop that catches all": (
        "time",
        """
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
        """,
        TOO_LONG,
    ),
    "ignores all signals": (
        "time",
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
        """,
        TOO_LONG,
    ),
    "closes everything and stays": (
        "time",
        "os.closerange(0, 64)\nwhile True:\n    pass",
        TOO_LONG,
    ),
    "raises SystemExit": ("time", "sys.exit(0)", "SystemExit"),
    "raises KeyboardInterrupt": ("time", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    "ends its process": ("time", "os._exit(0)", "exit code 0"),
    "exits in a destructor": (
        "time",
        """
        class Last:
            def __del__(self):
                os._exit(7)
        last = Last()
        """,
        "exit code 7",
    ),
    "recursion": ("time", "def f(n):\n    return f(n + 1)\nf(0)", "RecursionError"),
    "recursion without a limit": (
        "time",
        "sys.setrecursionlimit(10**9)\n"
        "class A:\n    def __getattr__(self, name):\n        return getattr(self, name)\n"
        "A().x\ndef f(n):\n    return repr([f(n + 1)]) if n < 10**7 else ''\nf(0)",
        ("SIGSEGV", "RecursionError", "MemoryError"),
    ),
    "crashes the interpreter": ("time", "ctypes.string_at(0)", "SIGSEGV"),
    # --- the reply channel
    "forges a reply on all files": (
        "time",
        """
        import struct
        for number in range(64):
            try:
                os.write(number, bytes(16) + b'F' + struct.pack('<d', 1.0))
            except OSError:
                pass
        os._exit(0)
        """,
        "wrote into the reply channel",
    ),
    "writes before the true reply": (
        "time",
        "[os.write(n, b'x') for n in range(3, 64) if os.path.exists('.') and fits(n)]",
        "wrote into the reply channel",
    ),
    "forges the answer of its parent": (
        "time",
        """
        import struct
        answer = struct.pack('<ciQ?III', b'D', 0, 0, False, 25, 0, 0) + bytes(25)
        for number in range(64):
            try:
                os.write(number, struct.pack('<I', len(answer)) + answer)
            except OSError:
                pass
        os._exit(0)
        """,
        "wrote into the reply channel",
    ),
    "a reply beyond 1 MB": (
        "time",
        """
        for number in range(3, 64):
            try:
                while True:
                    os.write(number, bytes(60_000))
            except OSError:
                pass
        """,
        "larger than 100,000 bytes",
    ),
    "an error text without end": ("time", "raise ValueError('x' * 10**7)", "xxx"),
    "an error that cannot be told": (
        "time",
        """
        class Mute(Exception):
            def __str__(self):
                os._exit(9)
        raise Mute
        """,
        "exit code 9",
    ),
}
FITS = """
def fits(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False
"""


@pytest.fixture(scope="module")
def listener():
    """A server of ours that no attack may reach."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_not_contained_or_not_reported(runners, secrets, listener, name):
    protection, program, said = ATTACKS[name]
    needs(protection)
    item = {
        "folder": str(secrets),
        "home": os.path.expanduser("~"),
        "own": sys.modules["rftkit"].__file__,
        "pid": os.getpid(),
        "port": listener.getsockname()[1],
    }
    runner = runners[said == TOO_LONG]
    found = grade(runner, attempt(program) + FITS, item)
    assert found["reward"] == 0.0 and found["metadata"]["errors"]["python_grader_runtime_error"]
    text = details(found)
    assert any(one in text for one in ([said] if isinstance(said, str) else said)), text
    assert len(text) < 30_000
    # nobody was harmed: the file, our environment, the listener, and the next grade
    assert (secrets / "train.jsonl").read_text() == '{"answer": "SCN1A"}\n'
    assert sorted(path.name for path in secrets.iterdir()) == ["train.jsonl"]
    assert "sk-not-for-you" not in text and "SCN1A" not in text
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert grade(runner, "def grade(sample, item):\n    return 0.25\n")["reward"] == 0.25


# --- the disk, where no folder shows what is taken -----------------------------------------------

DISK = Limits(seconds=60, disk=20_000_000)
FULL = ("No space left", "more than 20,000,000 bytes were written to disk")
BEFORE = "import ctypes, mmap, os, time\nblock = bytes(10**6)\n"
STAY = "while True:\n    os.write(1, b'.')\n    time.sleep(0.02)\n"
# name -> (the program, what may be said). What is written when a repair is missing is bounded.
DISK_PROGRAMS = {
    "blocks beyond the end of a file": (
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]\n"
        "file = os.open('f', os.O_CREAT | os.O_RDWR)\n"
        "if libc.fallocate(file, 1, 0, 100_000_000):\n"  # 1: FALLOC_FL_KEEP_SIZE
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
        "print(os.fstat(file).st_blocks * 512, 'taken')\n",
        ("not permitted",),
    ),
    "unlinked files that are held open": (
        "kept = []\n"
        "for n in range(4):\n"
        "    kept.append(open(str(n), 'wb', buffering=0))\n"
        "    os.unlink(str(n))\n"
        "    for _ in range(15):\n"
        "        assert kept[-1].write(block) == 10**6, os.write(kept[-1].fileno(), block)\n"
        "time.sleep(60)\n",
        FULL,
    ),
    "writes to the disk and into its pipe by turns": (
        "for n in range(60):\n"
        "    with open(str(n), 'wb', buffering=0) as file:\n"
        "        assert file.write(block) == 10**6, os.write(file.fileno(), block)\n"
        "    os.write(1, b'.')\n" + STAY,
        FULL,
    ),
}


@pytest.fixture(params=["mounted", "measured"])
def disk_runner(request, monkeypatch):
    """A file system of the scratch folder's own, and the way of machines that may not mount."""
    needs("files", "processes", "disk")
    settings = process.settings
    if request.param == "measured":
        monkeypatch.setattr(process, "settings", lambda *a: settings(*a) | {"may_unshare": False})
    elif not any("tmpfs" in means for means in report().protections["disk"]):
        pytest.skip("sandbox: this machine lacks a file system of the scratch folder's own")
    runner = Runner(DISK, workers=1)
    yield runner
    runner.close()


def ask_program(runner, source: str):
    return runner.run_program({"source": BEFORE + source, "stdin": "", "arguments": []})


@pytest.mark.parametrize("name", DISK_PROGRAMS)
def test_disk_holds_more_than_its_limit(disk_runner, name):
    program, said = DISK_PROGRAMS[name]
    result = ask_program(disk_runner, program)
    assert not result.ok and any(one in result.stderr + (result.error or "") for one in said)
    # nothing of it is left for the next one, which may fill the disk to its limit
    assert ask_program(disk_runner, "print(os.listdir('.'))").stdout == "[]\n"
    fill = "print(open('f', 'wb', buffering=0).write(20 * block), os.path.getsize('f'))"
    result = ask_program(disk_runner, fill)
    assert (result.stdout, result.error) == ("20000000 20000000\n", None), result


def test_kernel_does_not_bound_what_the_folder_does_not_show(disk_runner):
    """Unlinked and held by a memory map alone: only a file system of its own knows of it."""
    hidden = (
        "maps, written = [], 0\n"
        "try:\n"
        "    for n in range(4):\n"
        "        with open('f', 'wb+', buffering=0) as file:\n"
        "            for _ in range(15):\n"
        "                written += file.write(block)\n"
        "            maps.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE))\n"
        "        os.unlink('f')\n"
        "except OSError as error:\n"
        "    print(error.strerror, written < 20_200_000)\n"
    )
    result = ask_program(disk_runner, hidden)
    if process.settings("", DISK)["may_unshare"]:
        assert result.stdout == "No space left on device True\n", result
    else:  # what is left open there, and said in the threat model
        assert result.ok


def test_number_of_files_is_not_limited(disk_runner):
    result = ask_program(disk_runner, "for n in range(10_050):\n    open(str(n), 'w').close()\n")
    assert not result.ok
    assert any(one in result.stderr + (result.error or "") for one in FULL)
    assert ask_program(disk_runner, "print(os.listdir('.'))").stdout == "[]\n"


# --- state: what one grade does, and what the next one finds -------------------------------------

COUNTER = """
import builtins, math, os, sys, random
calls = [0]
def helper():
    return 0.5
def grade(sample, item):
    if item.get("attack"):
        exec(item["attack"], globals())
    return {check}
"""
STATES = {
    "counts in a global": ("calls[0] += 1", "float(calls[0])", 0.0),
    "patches its own module": ("global helper\nhelper = lambda: 1.0", "helper()", 0.5),
    "patches through sys.modules": (
        "sys.modules['grader'].helper = lambda: 1.0",
        "helper()",
        0.5,
    ),
    "replaces builtins": ("builtins.len = lambda x: 99", "float(len([]))", 0.0),
    "replaces a library's function": ("math.sqrt = lambda x: 99", "math.sqrt(4)", 2.0),
    "leaves a file": (
        "open('left', 'w').write('1')\nos.makedirs('a/b/c')\nopen('a/b/c/left', 'w')",
        "float(len(os.listdir('.')))",
        0.0,
    ),
    "leaves a closed folder": (
        "os.makedirs('closed', 0)",
        "float(len(os.listdir('.')))",
        0.0,
    ),
    "leaves folders in folders": (
        "for _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')",
        "float(len(os.listdir('.')))",
        0.0,
    ),
    "changes the folder and the environment": (
        "os.mkdir('x'); os.chdir('x'); os.environ['LEFT'] = '1'; os.umask(0o777)",
        "float('LEFT' in os.environ or os.getcwd().endswith('/x'))",
        0.0,
    ),
    "leaves a thread": (
        "import threading, time\n"
        "threading.Thread(target=lambda: [time.sleep(.01), builtins.__dict__.update(left=1)] "
        "and None).start()",
        "float(hasattr(builtins, 'left'))",
        0.0,
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_one_grade_changes_the_next(name):
    attack, check, expected = STATES[name]
    one_at_a_time = python_runner(limits=SMALL, allow_weak_isolation=True, workers=1)
    source = COUNTER.format(check=check)
    assert grade(one_at_a_time, source)["reward"] == expected
    grade(one_at_a_time, source, {"attack": attack})
    found = grade(one_at_a_time, source)
    assert found["reward"] == expected, details(found)


SHARED = {
    "shared memory": (
        "import mmap\nshared = mmap.mmap(-1, 8)\n",
        "shared[0] += 1\n    return float(shared[0])\n",
        REFUSED,
    ),
    "a file opened with the source": (
        "shared = open('shared', 'w+')\n",
        "shared.write('left')\n    shared.flush()\n    return float(shared.tell())\n",
        "Bad file descriptor",
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_grades_share_what_the_source_opened(name):
    """What a process and its children would share, the source cannot open, or a grade not use."""
    needs("processes")
    one_at_a_time = python_runner(limits=SMALL, allow_weak_isolation=True, workers=1)
    before, use, said = SHARED[name]
    for _ in range(2):
        found = grade(one_at_a_time, f"{before}def grade(sample, item):\n    {use}")
        assert not found["reward"] and said in details(found)


SPY = "import os, sys, builtins, gc, mmap, signal, threading, time, types\ncalls = [0]\n"
WATCH = (
    "    while True:\n"
    "        if os.path.exists('mark'):\n"
    "            calls[0] += 1\n"
    "            open(f'seen{calls[0]}', 'w').close()\n"
    "        time.sleep(0.005)\n"
)
LEFT_THREAD, LEFT_PROCESS = "the source left a thread running", "the source left a process running"
# name -> (what the source does while it is loaded, why it is refused or None)
LEFT_BY_THE_SOURCE = {
    "a thread": (
        f"def watch():\n{WATCH}threading.Thread(target=watch, daemon=True).start()\n",
        LEFT_THREAD + " (Thread-1",
    ),
    "a thread that no list holds": (
        f"import _thread\ndef watch():\n{WATCH}_thread.start_new_thread(watch, ())\n",
        LEFT_THREAD,
    ),
    "a process": (f"if os.fork() == 0:\n{WATCH}", LEFT_PROCESS),
    "a process whose parent is gone": (
        f"if os.fork() == 0:\n    if os.fork():\n        os._exit(0)\n{WATCH}os.wait()\n",
        LEFT_PROCESS,
    ),
    "a timer": (
        "def handler(*_): calls[0] += 1\n"
        "signal.signal(signal.SIGALRM, handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)\n",
        None,
    ),
    "a handler of the end of a grade": (
        "def handler(*_): calls[0] += 1\nsignal.signal(signal.SIGCHLD, handler)\n",
        None,
    ),
    "its own serving function": (
        "parent = sys.modules['rftkit.sandbox.warm_parent']\n"
        "serve = parent._serve\n"
        "def count(*a):\n    calls[0] += 1\n    return serve(*a)\n"
        "parent._serve = count\n",
        None,
    ),
    "its own code in our function": (
        "function = sys.modules['rftkit.sandbox.frames'].write_frame\n"
        "write = types.FunctionType(function.__code__, function.__globals__)\n"
        "def count(file, data):\n"
        "    grader = __import__('sys').modules['grader']\n"
        "    grader.calls[0] += 1\n"
        "    grader.write(file, data)\n"
        "function.__code__ = count.__code__\n",
        None,
    ),
    "its own os.fork": (
        "fork = os.fork\ndef count():\n    calls[0] += 1\n    return fork()\nos.fork = count\n",
        None,
    ),
    "its own builtins": (
        "zip_, map_, sum_ = zip, map, sum\n"
        "def count(function):\n"
        "    def counting(*a):\n        calls[0] += 1\n        return function(*a)\n"
        "    return counting\n"
        "builtins.sum, builtins.map, builtins.len = count(sum), count(map), count(len)\n",
        None,
    ),
    "a function before each fork": (
        "def count(): calls[0] += 1\nos.register_at_fork(before=count)\n",
        None,
    ),
    "an audit hook": (
        "def hook(*_): calls[0] += 1\nsys.addaudithook(hook)\n",
        "no audit hooks",
    ),
    "a profiler": ("def count(*_): calls[0] += 1\nsys.setprofile(count)\n", None),
    "a function at each collection": (
        "def count(*_): calls[0] += 1\ngc.callbacks.append(count)\ngc.set_threshold(1)\n",
        None,
    ),
    "a map of a file that grades can write": (
        "file = open('shared', 'wb+', buffering=0)\n"
        "file.write(bytes(4096))\n"
        "calls = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE)\n",
        None,
    ),
}


@pytest.mark.parametrize("may_unshare", [True, False], ids=["namespaces", "none"])
@pytest.mark.parametrize("name", LEFT_BY_THE_SOURCE)
def test_source_left_what_counts_the_grades(name, may_unshare, monkeypatch):
    """The first process of a namespace is spared some signals and adopts orphans by itself."""
    needs("files", "processes")
    settings = process.settings
    ours = {"may_unshare": may_unshare}
    monkeypatch.setattr(process, "settings", lambda *a: settings(*a) | ours)
    source, refused = LEFT_BY_THE_SOURCE[name]
    use = (
        "def grade(sample, item):\n"
        "    seen = calls[0] + sum(n.startswith('seen') for n in os.listdir('.'))\n"
        "    open('mark', 'w').close()\n"
        "    if os.path.exists('shared'):\n"
        "        open('shared', 'rb+').write(bytes([1]))\n"
        "    time.sleep(0.03)\n"
        "    return seen / 1e6\n"
    )
    runner = Runner(SMALL, workers=1)
    try:
        found = [runner(SPY + source + use, {}, {}) for _ in range(3)]
    finally:
        runner.close()
    if refused:
        assert found[0].failed_to_load and refused in found[0].runtime_error, found[0]
    else:
        values = [each.value for each in found]
        assert values[0] is not None and values == values[:1] * 3, found


def test_hardening_takes_what_an_honest_source_needs():
    """A thread that ended, a signal handler for the grade, functions of its own in builtins."""
    source = (
        "import builtins, os, random, signal, threading, time\n"
        "done = []\n"
        "thread = threading.Thread(target=done.append, args=(1,))\n"
        "thread.start(); thread.join()\n"
        "if os.fork() == 0:\n    os._exit(0)\n"
        "os.wait()\n"
        "def late(*_):\n    raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, late)\n"
        "builtins.half = lambda x: x / 2\n"
        "def grade(sample, item):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "    try:\n        time.sleep(20)\n"
        "    except TimeoutError:\n        return half(len(done))\n"
    )
    runner = Runner(SMALL, workers=1)
    try:
        assert [runner(source, {}, {}).value for _ in range(2)] == [0.5, 0.5]
    finally:
        runner.close()


# --- numbers that lie ----------------------------------------------------------------------------

LIAR = """
class Liar({base}):
    def __float__(self): return 1.0
    def __repr__(self): return "1.0"
    def __str__(self): return "1.0"
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
"""
NUMBERS = {
    "a float subclass that lies": (LIAR.format(base="float"), "Liar(0.25)", 0.25),
    "an int subclass that lies": (LIAR.format(base="int"), "Liar(0)", 0.0),
    "an object that claims to be a float": (PRETENDER, "Pretender()", "expected a finite number"),
    "NaN": ("", "float('nan')", "expected a finite number"),
    "infinity": ("", "float('-inf')", "expected a finite number"),
    "NaN in a subclass": (LIAR.format(base="float"), "Liar('nan')", "expected a finite number"),
    "a huge whole number": ("", "10**400", "expected a finite number"),
    "a whole number of a million bits": ("", "1 << 10**6", "expected a finite number"),
    "a text that looks like a number": ("", "'1.0'", "expected a finite number"),
    "a text without end": ("", "'1' * 10**6", "expected a finite number"),
    "nothing": ("", "None", "expected a finite number"),
    "a list": ("", "[1.0]", "expected a finite number"),
    "a complex number": ("", "1j", "expected a finite number"),
    "a bool": ("", "True", 1.0),
    "a numpy float": ("import numpy", "numpy.float64(0.5)", 0.5),
    "a metaclass that lies": (
        "class Meta(type):\n    __name__ = property(lambda self: 1 / 0)\n"
        "    def __instancecheck__(self, other): return True\n"
        "    def mro(self): return [*super().mro()]\n"
        "class Odd(metaclass=Meta): pass",
        "Odd()",
        "expected a finite number",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_number_lies(runner, name):
    before, value, expected = NUMBERS[name]
    found = grade(runner, f"{before}\ndef grade(sample, item):\n    return {value}\n")
    if isinstance(expected, float):
        assert found["reward"] == expected and not details(found)
    else:
        assert found["reward"] == 0.0 and expected in details(found) and len(details(found)) < 500


def test_patched_builtins_forge_a_number(runner):
    """The child took what it needs before any source ran; only the value's own bytes count."""
    found = grade(
        runner,
        "import builtins, struct, os\n"
        "def grade(sample, item):\n"
        "    builtins.float = builtins.issubclass = builtins.type = lambda *a: 1.0\n"
        "    struct.pack = lambda *a: b'x' * 8\n"
        "    os._exit = os.write = lambda *a: 1.0\n"
        "    return 0.25\n",
    )
    assert found["reward"] == 0.25


# --- the source itself, before any grade ---------------------------------------------------------

AT_LOADING = {
    "an endless loop": ("while True:\n    pass", TOO_LONG),
    "ends its process": ("import os\nos._exit(0)", "ended its process"),
    "raises": ("raise ValueError('no')", "ValueError: no"),
    "a library that is missing": ("import not_installed_here", "ModuleNotFoundError"),
    "reads a file": ("open('/etc/passwd')", REFUSED),
    "opens a connection": ("import socket\nsocket.socket()", REFUSED),
    "becomes another program": ("import os\nos.execv('/bin/ls', ['ls'])", REFUSED),
    "leaves processes": (
        "import os, time\nfor _ in range(3):\n    if not os.fork():\n        time.sleep(1000)\n"
        "1 / 0",
        "ZeroDivisionError",
    ),
    "a fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        TOO_LONG,
    ),
}


@pytest.mark.parametrize("name", AT_LOADING)
def test_source_attacks_while_it_is_loaded(runners, name):
    needs("files", "network", "processes", "threads")
    source, said = AT_LOADING[name]
    found = grade(
        runners[said == TOO_LONG], source + "\ndef grade(sample, item):\n    return 1.0\n"
    )
    assert found["reward"] is None  # no sample is to blame, so training leaves the grade out
    assert found["metadata"]["errors"]["python_grader_runtime_error"] and said in details(found)


# --- what is left behind -------------------------------------------------------------------------


def test_processes_or_folders_are_left_behind(tmp_path):
    """In a process of its own, so that all it started and made must be gone when it ends."""
    needs("processes")
    script = (
        "import os, sys\n"
        "from rftkit.sandbox import Limits, python_runner\n"
        "run = python_runner(limits=Limits(seconds=1), allow_weak_isolation=True)\n"
        'loop = \'def grade(sample, item):\\n    open("f", "w").write("x")\\n    \'\n'
        "print(run(loop + 'return 1.0', {}, {}).value)\n"
        "print(run(loop + 'while True: pass', {}, {}).runtime_error)\n"
        "if sys.argv[1] == 'killed':\n"
        "    import threading\n"
        "    threading.Timer(0.3, os.abort).start()\n"
        "    run(loop + 'while 1: pass', {}, {})\n"
    )
    for how in ("ends", "killed"):
        folder = tmp_path / how
        folder.mkdir()
        answer = subprocess.run(
            [sys.executable, "-c", script, how],
            env=os.environ | {"TMPDIR": str(folder)},
            capture_output=True,
            text=True,
        )
        assert answer.stdout.splitlines() == ["1.0", "the program ran longer than 1 s: stopped"]
        assert (answer.returncode == 0) == (how == "ends"), answer.stderr
        deadline = time.monotonic() + 20
        while list(folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)  # the guard cleans up behind a process that was killed
        assert list(folder.iterdir()) == []
        assert str(folder) not in running_processes()


def running_processes() -> str:
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(os.readlink(f"/proc/{number}/cwd"))
        except OSError:
            continue
    return "\n".join(found)


# --- programs that a model wrote -----------------------------------------------------------------


def test_program_finds_the_tests_of_its_own_solution():
    """Its memory, files, environment and arguments hold the case and nothing of the comparison."""
    needs("files", "processes")
    expected = "the-expected-answer"
    program = (
        "import gc, os, sys\n"
        "case = input()\n"
        "seen = repr(sys.argv) + repr(dict(os.environ)) + repr(os.listdir('.'))\n"
        "seen += repr([o for o in gc.get_objects() if isinstance(o, (dict, list))])[:10**6]\n"
        "frame = sys._getframe()\n"
        "while frame:\n"
        "    seen += repr(frame.f_locals)[:10**5]\n"
        "    frame = frame.f_back\n"
        "print(case, 'expected-answer' in seen.replace(open.__name__ + '!', ''))\n"
    )
    result = run_program(program.replace("'expected-answer'", "'expected' + '-answer'"), "a case")
    assert result.ok and result.stdout == "a case False\n", result
    assert result.stdout.strip() != expected  # the comparison happens here, on our side


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("open('/etc/passwd')", 1, REFUSED),
        ("import socket; socket.socket()", 1, REFUSED),
        ("import subprocess; subprocess.run(['/bin/true'])", 1, REFUSED),
        ("import os; os.fork()", 1, REFUSED),
        ("while True: pass", None, TOO_LONG),
        ("x = bytearray(10**10)", 1, "MemoryError"),
        ("while True: print('x' * 1000)", None, "larger than 100,000 bytes"),
        ("import os; os.abort()", None, "SIG"),
        ("import sys; sys.exit('gone')", 1, "gone"),
        ("import os; os._exit(3)", 3, ""),
        ("while True: open('x', 'ab').write(bytes(10**6))", 1, "File too large"),
        ("def f(:", 1, "SyntaxError"),
    ],
)
def test_program_of_a_model_is_not_contained(program, code, said):
    needs("files", "network", "processes")
    result = run_program(program, limits=SHORT if said == TOO_LONG else SMALL)
    assert result.exit_code == code and not (result.ok and code)
    assert said in result.stderr + (result.error or ""), result
