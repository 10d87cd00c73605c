"""Untrusted Python with limits: python graders.

The author of a grader is semi-trusted, what a model wrote and a grader runs is hostile. So a grade
runs in a process of its own, forked for it: it reads the interpreter's libraries and writes in one
empty scratch folder; it has no network and nothing of our environment; it can start and signal no
process; memory, time, disk, threads and the reply are limited (isolation.Limits). What comes back
is never unpickled or parsed: a number is eight bytes.

What this does not protect. A grader that runs a model's code within grade() shares its process with
it, and that code can decide this one grade, no other. Without a mount of its own the disk's limit
holds for each file and not for their sum. The size and existence of files outside can be seen, and
side channels such as timing are open. A fault of the kernel itself is out of reach.
"""
