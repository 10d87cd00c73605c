"""What Linux gives to lock a process in, through ctypes: no package and no privilege needed.

The server enters namespaces and shuts itself in: resource limits, a user of its own, Landlock for
files, seccomp for all other system calls. Its children inherit this and can open none of it.

seccomp lists what is allowed: what a Python interpreter and numerical libraries need on their own
data. All else answers EPERM. Not on the list, among others: socket, connect, execve, ptrace, chmod,
mount, io_uring, shared memory, and fallocate, which takes blocks that RLIMIT_FSIZE does not see. A
child loads a second filter that takes away fork, kill and wait.

Sources: the kernel's documentation of Landlock and seccomp; man 7 user_namespaces, capabilities.
"""

import ctypes
import errno
import os
import struct
import sys
from contextlib import suppress
from typing import Any, NamedTuple

MOST_FILES = 10_000  # in the scratch folder, where it is a tmpfs

# Shared libraries, the loader's list of them, time zones, random bytes.
_SYSTEM = "/lib /lib64 /usr/lib /usr/lib64 /etc/ld.so.cache /etc/localtime /usr/share/zoneinfo"


class Limits(NamedTuple):
    """What one grade may use; the defaults are those of OpenAI's graders guide."""

    seconds: float = 120.0  # for loading the text and grading together
    memory: int = 2_000_000_000  # bytes of address space, libraries included
    disk: int = 1_000_000_000  # bytes in the scratch folder if it is a tmpfs, else in any one file
    reply: int = 1_000_000  # bytes of a result
    threads: int = 64  # where the machine can count them
    open_files: int = 128
    namespaces: bool = True  # False: as in a container that gives none


def set_limits(limits: Limits, count_threads: bool) -> None:
    """Limit this process and all that it forks; hard limits, so there is no way back. To count
    threads the user must be the sandbox's own: the kernel counts all threads of a user."""
    import resource  # not on Windows

    wanted = {"AS": limits.memory, "FSIZE": limits.disk, "NOFILE": limits.open_files, "CORE": 0}
    if count_threads:
        wanted["NPROC"] = limits.threads
    for name, value in wanted.items():
        with suppress(AttributeError, ValueError, OSError):  # what macOS lacks
            which = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))


def readable_paths(roots: list[str], closed: str) -> dict[str, int]:
    """{path: its Landlock rights}: whole trees, but of a folder that holds `closed` only the list
    of names, and its other parts."""
    rights: dict[str, int] = {}
    paths = [os.path.realpath(root) for root in roots]
    while paths:
        path = paths.pop()
        if closed.startswith(path + os.sep):
            rights[path] = _READ_DIR
            paths += [os.path.join(path, name) for name in os.listdir(path)]
        elif path != closed and os.path.exists(path):
            rights[path] = _READ_FILE | _READ_DIR
    return rights


def shut_in(limits: Limits, scratch: str, is_apart: bool) -> tuple[dict[str, list[str]], bytes]:
    """Lock this process, and all that it forks, to libraries and the folder `scratch`.

    Returns {what is protected: by which means, none of them where this machine lacks it}, and the
    filter that each child is to load, empty without seccomp. OSError where a means fails.
    """
    roots = [*sys.path, os.path.join(sys.base_prefix, "lib"), *_SYSTEM.split(), "/dev/urandom"]
    # Not rftkit itself: an installed one carries datasets, whose rows hold the answers.
    rights = readable_paths(roots, os.path.realpath(os.path.dirname(os.path.dirname(__file__))))
    is_root, user = os.geteuid() == 0, 2_000_000_000 + int.from_bytes(os.urandom(3), "little")
    if not (is_root and _succeeds(_libc.chown, os.fsencode(scratch), user, user)):
        user = os.geteuid()
    is_mounted = is_apart and _mount_in_memory(scratch, limits.disk, user)
    os.chdir(scratch)
    # RLIMIT_NPROC is void for root, and a user namespace counts by itself.
    counts_threads = user != os.geteuid() or (is_apart and not is_root)
    set_limits(limits, counts_threads)
    _become(user)
    die_with_parent()
    _call(_libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, for Landlock and seccomp
    version, machine, has_filter = _restrict_files(rights, scratch), os.uname().machine, False
    with suppress(OSError, KeyError):  # no seccomp, or no table of this processor's calls
        load_filter(program_of_server(machine))
        has_filter = True
    given = {
        "files": [f"Landlock ABI {version}"] * bool(version),
        "network": ["seccomp"] * has_filter + ["network namespace"] * is_apart,
        "processes": ["seccomp"] * has_filter + ["process namespace"] * is_apart,
        "threads": ["a user, or user namespace, of its own"] * counts_threads,
        "memory": ["RLIMIT_AS"],
        "disk": ["RLIMIT_FSIZE"] + ["a tmpfs of that size"] * is_mounted,
    }
    return given, program_of_child(machine) if has_filter else b""


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Rights over files, by bit (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_ABI_1 = (1 << 13) - 1
_ONLY_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
# Write, read, list, remove folders and files, make folders and files, rename, truncate: no links,
# devices, pipes or sockets, nothing to execute.
_SCRATCH = 2 | 4 | 8 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | _REFER | _TRUNCATE


def _restrict_files(rights: dict[str, int], scratch: str) -> int:
    """Allow these paths and the scratch folder alone; the kernel's Landlock ABI, 0 without one."""
    try:
        version = _call(_libc.syscall, _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0
    known = _ALL_OF_ABI_1 | _REFER * (version >= 2) | _TRUNCATE * (version >= 3)
    known |= _IOCTL_DEVICE * (version >= 5)
    rules = _call(_libc.syscall, _LANDLOCK_CREATE, struct.pack("<Q", known), 8, 0)
    own = {os.devnull: _READ_FILE | _WRITE_FILE, scratch: _SCRATCH}
    for path, right in (rights | own).items():
        with suppress(FileNotFoundError):  # a path that is not there needs no rule
            file = os.open(path, os.O_PATH | os.O_CLOEXEC)
            right &= known if os.path.isdir(path) else known & _ONLY_FILES
            _call(_libc.syscall, _LANDLOCK_ADD, rules, 1, struct.pack("<Qi", right, file), 0)
            os.close(file)
    _call(_libc.syscall, _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return version


def load_filter(program: bytes) -> None:
    """Put a seccomp filter, BPF instructions, on this process and all that it forks."""
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    _call(_libc.prctl, 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends (a change of user undoes this)."""
    _call(_libc.prctl, 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def _become(user: int) -> None:
    """Make root a user whose threads can be counted and who may signal nobody; give up all single
    rights but one: to read what is closed to others, as root's Python below /root. Landlock bounds
    it."""
    keep = 0
    if user != os.geteuid():
        keep = 1 << 2  # CAP_DAC_READ_SEARCH
        os.setgroups([])
        os.setresgid(user, user, user)
        _call(_libc.prctl, 8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setresuid(user, user, user)
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_libc.capset, header, struct.pack("<6I", keep, keep, 0, 0, 0, 0))


# CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC; the others alone.
_APART, _NEW_USER, _NEW_MOUNTS = 0x6800_0000, 0x1000_0000, 0x0002_0000


def enter_namespaces() -> bool:
    """Enter new namespaces: of the network, and, with the next fork, of processes. Without
    privilege a user namespace comes first and gives the right to the rest."""
    if _succeeds(_libc.unshare, _APART):
        return True
    user, group = os.geteuid(), os.getegid()
    if not _succeeds(_libc.unshare, _NEW_USER | _APART):
        return False
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in maps.items():  # this user is itself, and nobody else is anybody
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def _mount_in_memory(folder: str, size: int, owner: int) -> bool:
    """Put an empty tmpfs over `folder`, seen by this process and those it forks, gone with them.
    The kernel counts its blocks, those of unlinked files too: beyond `size` bytes, ENOSPC."""
    options = f"size={size},nr_inodes={MOST_FILES + 1},mode=0700,uid={owner}"  # itself is one
    tmpfs = (b"tmpfs", os.fsencode(folder), b"tmpfs", 2 | 4 | 8)  # MS_NOSUID, MS_NODEV, MS_NOEXEC
    private = 0x4000 | 1 << 18  # MS_REC, MS_PRIVATE: the rest of the machine does not see it
    return (
        _succeeds(_libc.unshare, _NEW_MOUNTS)
        and _succeeds(_libc.mount, None, b"/", None, private, None)
        and _succeeds(_libc.mount, *tmpfs, options.encode())
    )


if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.syscall.restype = ctypes.c_long


def _call(function: Any, *arguments: bytes | int | None) -> int:
    """A C function that answers -1 and sets errno, as one that raises OSError."""
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _succeeds(function: Any, *arguments: bytes | int | None) -> bool:
    with suppress(OSError):
        _call(function, *arguments)
        return True
    return False


# name:number on x86_64:number on aarch64 ("-": it has none), from the kernel's own tables.
_TABLE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 lseek:8:62 close:3:57
close_range:436:436 fstat:5:80 stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 fstatfs:138:44
statfs:137:43 access:21:- faccessat:269:48 faccessat2:439:439 open:2:- openat:257:56 readlink:89:-
readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 getdents64:217:61 mkdir:83:- mkdirat:258:34
rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 ftruncate:77:46
fsync:74:82 fdatasync:75:83 flock:73:32 fadvise64:221:223 fcntl:72:25 ioctl:16:29 dup:32:23
dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19 mmap:9:222
munmap:11:215 mremap:25:216 mprotect:10:226 madvise:28:233 brk:12:214 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 sigaltstack:131:132 pause:34:- rt_sigsuspend:130:133
setitimer:38:103 getitimer:36:102 alarm:37:- nanosleep:35:101 clock_nanosleep:230:115
clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153
getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176
getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155
getrusage:98:165 sysinfo:99:179 uname:63:160 getcpu:309:168 sched_yield:24:124
sched_getaffinity:204:123 prlimit64:302:261 futex:202:98 set_robust_list:273:99
set_tid_address:218:96 rseq:334:293 membarrier:324:283 arch_prctl:158:- prctl:157:167 clone:56:220
fork:57:- kill:62:129 wait4:61:260 exit:60:93 exit_group:231:94 restart_syscall:219:128
getrandom:318:278 umask:95:166 socketpair:53:199 sendto:44:206 recvfrom:45:207
"""
_PROCESSORS = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column, AUDIT_ARCH
_CLONE3, _NEWEST_KNOWN = 435, 450  # newer calls answer ENOSYS, so that libc takes the older ones

# CLONE_PTRACE, CLONE_PARENT, CLONE_UNTRACED and all CLONE_NEW…: new namespaces give new rights.
_CLONE_NEVER, _CLONE_THREAD = 0x7E82_A080, 0x0001_0000
_ALL = 0xFFFF_FFFF
_NAMES = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: of a thread, of a map

# call -> (argument, mask, values): allowed where (argument & mask) is one of the values. All these
# arguments have 32 bits. What is given to fcntl and ioctl must not send signals or reach devices.
Conditions = dict[str, tuple[int, int, tuple[int, ...]]]
_OF_SERVER: Conditions = {
    "clone": (0, _CLONE_NEVER, (0,)),
    "mmap": (3, 0x01, (0,)),  # MAP_SHARED: memory in which one grade leaves something to the next
    # O_TRUNC on a file opened for reading: older Landlock (before ABI 3) does not see it
    "open": (1, 0x203, (0x000, 0x001, 0x002, 0x201, 0x202)),
    "openat": (2, 0x203, (0x000, 0x001, 0x002, 0x201, 0x202)),
    # dup, get and set flags, locks, dup with close-on-exec, size of a pipe
    "fcntl": (1, _ALL, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),
    # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, _ALL, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),
    "prlimit64": (0, _ALL, (0,)),  # one's own limits, nobody else's
    "prctl": (0, _ALL, (1, 22, *_NAMES)),  # PR_SET_PDEATHSIG, PR_SET_SECCOMP
    "socketpair": (0, _ALL, (1,)),  # AF_UNIX, within the process: asyncio wakes itself so
    "sendto": (5, _ALL, (0,)),  # to the other end alone: an address has a length
}
_OF_CHILD: Conditions = {
    "clone": (0, _CLONE_THREAD, (_CLONE_THREAD,)),  # a thread, never a process
    "prctl": (0, _ALL, _NAMES),
    **dict.fromkeys(("fork", "kill", "wait4"), (0, 0, ())),
}
_ALLOW, _KILL = 0x7FFF_0000, 0x8000_0000
_REFUSE, _UNKNOWN = 0x0005_0000 | errno.EPERM, 0x0005_0000 | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06


def numbers(machine: str) -> dict[str, int]:
    """{system call: number} on this kind of processor."""
    rows, (column, _) = [entry.split(":") for entry in _TABLE.split()], _PROCESSORS[machine]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def program_of_server(machine: str) -> bytes:
    """The filter that the server and all its children keep, as BPF instructions: the first
    decision that fits counts. KeyError where there is no table of this processor's calls."""
    steps = [
        _step(_LOAD, 4),  # the kind of processor: a 32-bit call would have other numbers
        _step(_EQUAL, _PROCESSORS[machine][1], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, 0),
    ]
    for name, number in numbers(machine).items():
        steps += _decide(number, _OF_SERVER.get(name))
    steps += [_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _UNKNOWN)]
    steps += [_step(_AT_LEAST, _NEWEST_KNOWN + 1, 0, 1), _step(_RETURN, _UNKNOWN)]
    return b"".join([*steps, _step(_RETURN, _REFUSE)])


def program_of_child(machine: str) -> bytes:
    """What a child loses beyond that; short, for it is loaded for every grade."""
    known = numbers(machine)
    steps = [_step(_LOAD, 0)]
    for name in _OF_CHILD.keys() & known.keys():
        steps += _decide(known[name], _OF_CHILD[name])
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _decide(number: int, condition: tuple[int, int, tuple[int, ...]] | None) -> list[bytes]:
    """If it is this call: allow it, or, with a condition, allow or refuse it."""
    if condition is None:
        return [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    argument, mask, values = condition
    steps = [_step(_LOAD, 16 + 8 * argument), _step(_AND, mask)]  # all processors: little-endian
    for value in values:
        steps += [_step(_EQUAL, value, 0, 1), _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(steps) + 1), *steps, _step(_RETURN, _REFUSE)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction (struct sock_filter)."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
