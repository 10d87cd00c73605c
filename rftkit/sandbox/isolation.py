"""What Linux gives to lock a process in, through ctypes: no package and no privilege needed.

The server enters namespaces and shuts itself in: resource limits, a user of its own, Landlock for
files, seccomp for all other system calls. Its children inherit this and can open none of it.

Sources: the kernel's documentation of Landlock and seccomp; man 7 user_namespaces, capabilities.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Any, NamedTuple

from rftkit.sandbox import seccomp

try:
    import resource
except ImportError:  # Windows
    resource = None

MOST_FILES = 10_000  # in the scratch folder, where it is a tmpfs

# Shared libraries, the loader's list of them, time zones, random bytes.
_SYSTEM = "/lib /lib64 /usr/lib /usr/lib64 /etc/ld.so.cache /etc/localtime /usr/share/zoneinfo"


class Limits(NamedTuple):
    """What one grade, or one program, may use; the defaults are those of OpenAI's graders guide."""

    seconds: float = 120.0  # for loading the text and grading together
    memory: int = 2_000_000_000  # bytes of address space, libraries included
    disk: int = 1_000_000_000  # bytes in the scratch folder if it is a tmpfs, else in any one file
    reply: int = 1_000_000  # bytes of a result, or of what a program prints
    threads: int = 64  # where the machine can count them
    open_files: int = 128


def set_limits(limits: Limits, count_threads: bool) -> None:
    """Limit this process and all that it forks; hard limits, so there is no way back.

    count_threads: the kernel counts all threads of a user, so the user must be the sandbox's own.
    """
    wanted = {"AS": limits.memory, "FSIZE": limits.disk, "NOFILE": limits.open_files}
    wanted |= {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "RTPRIO": 0}
    if count_threads:
        wanted["NPROC"] = limits.threads
    for name, value in wanted.items():
        try:
            which = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
        except (AttributeError, ValueError, OSError):
            pass  # Windows has none of them and macOS not all; report() tells


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


def shut_in(
    limits: Limits, scratch: str, namespaces: list[str]
) -> tuple[dict[str, list[str]], Filter | None]:
    """Lock this process, and all that it forks, to libraries and the folder `scratch`.

    Returns {what is protected: by which means, none of them where this machine lacks it}, and the
    filter that each child is to load. OSError where a means fails.
    """
    roots = [*sys.path, os.path.join(sys.base_prefix, "lib"), *_SYSTEM.split(), "/dev/urandom"]
    # Not rftkit itself: an installed one carries datasets, whose rows hold the answers.
    rights = readable_paths(roots, os.path.realpath(os.path.dirname(os.path.dirname(__file__))))
    user, passes_closed_folders = _private_user([*rights, os.path.dirname(scratch)])
    if user is not None:
        os.chown(scratch, user, user)
    is_mounted = "mount" in namespaces and mount_in_memory(scratch, limits.disk, user)
    os.chdir(scratch)
    # RLIMIT_NPROC is void for root, and a user namespace counts by itself.
    counts_threads = user is not None or ("user" in namespaces and os.geteuid() != 0)
    set_limits(limits, counts_threads)
    if user is None:
        _drop_capabilities()
    else:
        _become(user, passes_closed_folders)
    die_with_parent()
    _call(_libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, for Landlock and seccomp
    version = landlock_version()
    if version:
        _restrict_files(version, rights, scratch)
    has_filter = _has_seccomp()
    if has_filter:
        Filter(seccomp.program_of_server()).load()
    given = {
        "files": [f"Landlock ABI {version}"] * bool(version),
        "network": ["seccomp"] * has_filter + ["network namespace"] * ("network" in namespaces),
        "processes": ["seccomp"] * has_filter + ["process namespace"] * ("process" in namespaces),
        "threads": ["a user, or user namespace, of its own"] * counts_threads,
        "memory": ["RLIMIT_AS"],
        "disk": ["RLIMIT_FSIZE"] + ["a tmpfs of that size"] * is_mounted,
    }
    return given, Filter(seccomp.program_of_child()) if has_filter else None


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Rights over files, by bit (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_ABI_1 = (1 << 13) - 1
_ONLY_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
# Write, read, list, remove folders and files, make folders and files, rename, truncate: no links,
# devices, pipes or sockets, nothing to execute.
_SCRATCH = 2 | 4 | 8 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | _REFER | _TRUNCATE


def landlock_version() -> int:
    """The kernel's Landlock ABI: 0 where there is none."""
    try:
        return max(0, _call(_libc.syscall, _LANDLOCK_CREATE, None, 0, 1))
    except OSError:
        return 0


def _restrict_files(version: int, rights: dict[str, int], scratch: str) -> None:
    known = _ALL_OF_ABI_1 | _REFER * (version >= 2) | _TRUNCATE * (version >= 3)
    known |= _IOCTL_DEVICE * (version >= 5)
    rules = _call(_libc.syscall, _LANDLOCK_CREATE, struct.pack("<Q", known), 8, 0)
    own = {os.devnull: _READ_FILE | _WRITE_FILE, scratch: _SCRATCH}
    for path, right in (rights | own).items():
        try:
            file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # a path that is not there needs no rule
            continue
        right &= known if os.path.isdir(path) else known & _ONLY_FILES
        _call(_libc.syscall, _LANDLOCK_ADD, rules, 1, struct.pack("<Qi", right, file), 0)
        os.close(file)
    _call(_libc.syscall, _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def _has_seccomp() -> bool:
    """A filter at address 0 answers EFAULT where the kernel would have read it (man 2 seccomp)."""
    try:
        _call(_libc.prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, 0, 0, 0)
    except OSError as error:
        return error.errno == errno.EFAULT and seccomp.numbers() is not None
    return False


class Filter:
    """BPF instructions, ready to be loaded at little cost."""

    def __init__(self, program: bytes):
        self._steps = ctypes.create_string_buffer(program, len(program))
        address = ctypes.addressof(self._steps)
        self._header = struct.pack("@HP", len(program) // 8, address)

    def load(self) -> None:
        _call(_libc.prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._header, 0, 0)


_CAP_DAC_READ_SEARCH = 1 << 2


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends (a change of user undoes this)."""
    _call(_libc.prctl, 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def _private_user(paths: list[str]) -> tuple[int | None, bool]:
    """For root: (a user whose threads can be counted and who may signal nobody, must it keep the
    right to pass closed folders). Tried out: it must reach the paths, and a Python below /root is
    closed to others. Landlock bounds that right."""
    user = 2_000_000_000 + int.from_bytes(os.urandom(3), "little")
    for passes_closed_folders in (False, True) if os.geteuid() == 0 else ():
        pid = os.fork()
        if pid == 0:
            try:
                _become(user, passes_closed_folders)
                for path in paths:
                    os.close(os.open(path, os.O_RDONLY))
            except OSError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return user, passes_closed_folders
    return None, False


def _become(user: int, passes_closed_folders: bool) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    _call(_libc.prctl, 8, int(passes_closed_folders), 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setresuid(user, user, user)
    _drop_capabilities(_CAP_DAC_READ_SEARCH if passes_closed_folders else 0)


def _drop_capabilities(keep: int = 0) -> None:
    """Give up root's single rights, all but those in the bit mask `keep`."""
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_libc.capset, header, struct.pack("<6I", keep, keep, 0, 0, 0, 0))


_NAMESPACES = {"network": 0x40000000, "process": 0x20000000, "ipc": 0x08000000, "mount": 0x00020000}


def enter_namespaces() -> list[str]:
    """Enter as many new namespaces as this machine allows; their names. Without privilege a user
    namespace comes first and gives the right to the rest. That of processes begins with a fork."""
    user, group = os.geteuid(), os.getegid()
    entered = [name for name, kind in _NAMESPACES.items() if _succeeds(_libc.unshare, kind)]
    if not entered and _succeeds(_libc.unshare, 0x10000000):  # CLONE_NEWUSER
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in maps.items():  # this user is itself, and nobody else is anybody
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        entered = [name for name, kind in _NAMESPACES.items() if _succeeds(_libc.unshare, kind)]
        entered.append("user")
    # Nothing that is mounted from here on may be seen by the rest of the machine.
    private = 0x4000 | 1 << 18  # MS_REC, MS_PRIVATE
    if "mount" in entered and not _succeeds(_libc.mount, None, b"/", None, private, None):
        entered.remove("mount")
    return entered


def mount_in_memory(folder: str, size: int, user: int | None) -> bool:
    """Put an empty tmpfs over `folder`, seen by this process and those it forks, gone with them.
    The kernel counts its blocks, those of unlinked files too: beyond `size` bytes, ENOSPC."""
    options = f"size={size},nr_inodes={MOST_FILES + 1},mode=0700"  # the folder itself is one
    options += "" if user is None else f",uid={user},gid={user}"
    flags = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
    arguments = (b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode())
    return _succeeds(_libc.mount, *arguments)


def unmount(folder: str) -> None:
    """Take that file system away; its memory is free once its last user has ended."""
    _succeeds(_libc.umount2, os.fsencode(folder), 2)  # MNT_DETACH


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
    try:
        _call(function, *arguments)
    except OSError:
        return False
    return True
