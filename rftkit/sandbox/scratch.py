"""The scratch folder: how full it is, and how it is emptied, whatever was done in it.

`shutil` and `subprocess` are imported where they are needed, which is rare: every child is a copy
of the process that has this module, and each library makes the copy dearer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

MOST_FILES = 10_000


def bytes_in(folder: str, enough: int) -> int:
    """Bytes in a folder; 1 where there are only empty files and folders. It stops counting where
    there is more than `enough`, or more than MOST_FILES files, and then says more than `enough`."""
    total = 0
    for count, entry in enumerate(_entries(folder), start=1):
        if entry.is_file(follow_symlinks=False):
            total += entry.stat(follow_symlinks=False).st_size
        if count > MOST_FILES or total > enough:
            return max(total, enough + 1)
        total = max(total, 1)
    return total


def wipe(folder: str) -> bool:
    """Empty the folder for the next grade; False where that fails and a new one is needed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    import shutil

                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
    except (OSError, RecursionError):
        return False
    return True


def remove(folder: str) -> None:
    """Remove a folder that hostile code has written in; follows no links."""
    import shutil

    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):  # nested deeper than Python can follow, or closed folders
        import subprocess

        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)


def _entries(folder: str) -> Iterator[os.DirEntry]:
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # a folder the child closed, or removed just now
            continue
