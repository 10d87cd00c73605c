"""What a sandboxed program may read: the interpreter, its libraries, the system's libraries."""

from __future__ import annotations

import os
import site
import sys
import sysconfig

# Shared libraries, the loader's list of them, and time zones.
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
)
_NAMES_OF_LIBRARIES = ("site-packages", "dist-packages")


def library_folders() -> list[str]:
    """The folders of installed packages, in the order of sys.path. A folder that only this
    process put there (a checkout, the current folder) is not among them."""
    known = set(site.getsitepackages()) | {sysconfig.get_path("purelib")}
    if site.ENABLE_USER_SITE:
        known.add(site.getusersitepackages())
    return [
        path
        for path in dict.fromkeys(sys.path)
        if (path in known or os.path.basename(path) in _NAMES_OF_LIBRARIES) and os.path.isdir(path)
    ]


def readable_paths() -> tuple[list[str], list[str]]:
    """(whole trees and files that may be read, folders of which only the list may be read).

    rftkit itself is not readable inside: an installed one carries datasets, whose rows hold the
    answers that a grader's text must not look up.
    """
    own = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
    roots = [
        *library_folders(),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        os.path.join(sys.base_prefix, "lib"),
        *_SYSTEM,
    ]
    trees: list[str] = []
    lists: list[str] = []
    for root in dict.fromkeys(map(os.path.realpath, roots)):
        _walk_around(root, own, trees, lists)
    return trees, lists


def _walk_around(path: str, closed: str, trees: list[str], lists: list[str]) -> None:
    """Add `path` whole, or, where `closed` lies in it, all its parts but that one."""
    if path == closed or not os.path.exists(path):
        return
    if not closed.startswith(path + os.sep):
        trees.append(path)
        return
    lists.append(path)
    for name in sorted(os.listdir(path)):
        _walk_around(os.path.join(path, name), closed, trees, lists)
