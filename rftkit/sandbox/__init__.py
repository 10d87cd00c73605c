"""Untrusted Python with limits: python graders, and code that a model wrote.

The author of a grader is semi-trusted, the text may be careless; what a model wrote is hostile. So
both run in a process of their own, forked for each grade, which gets

    files        the interpreter's libraries to read, one empty scratch folder to write in
    network      none
    environment  none of ours
    processes    none to start, none to signal, few threads
    memory       2 GB      time  2 minutes      disk  1 GB      reply  1 MB

    runner.py     our side: python_runner(), run_program(), and report(), which tries out what of
                  this the machine gives
    server.py     their side: a server that has imported the libraries, and its children
    isolation.py  Landlock, namespaces, users and limits; seccomp.py the filter of system calls

Nothing that comes back is trusted: it is never unpickled or parsed, a number is eight bytes.

What this does not protect. A grader that runs a model's code within grade() shares its process with
it, and that code can decide this one grade, no other: hidden tests and the comparison belong on our
side of `run_program`. Without a mount of its own the disk's limit holds for each file and not for
their sum. The size and existence of files outside can be seen, and side channels such as timing
are open. A fault of the kernel itself is out of reach.
"""
