"""Untrusted Python with limits, for python graders.

A grader's author is semi-trusted; what a model wrote is hostile. Each grade runs in a process of
its own. It reads the interpreter's libraries and writes to one empty scratch folder. It has no
network and no environment of ours, and it can neither start nor signal a process. Memory, time,
disk, threads and reply are limited (isolation.Limits). A reply is never unpickled or parsed.

Not protected: a grader that runs a model's code inside grade() lets that code decide this one
grade. Without a mount of its own, the disk limit holds per file. Sizes and names of files outside
can be seen. Timing and other side channels, and faults of the kernel, remain.
"""
