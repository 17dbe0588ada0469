"""Errors a person can act on, and the exit code each one ends the program with.

A message says what, where, why and the fix, in one to three lines; the command line prints it without a
traceback unless ``--debug`` is given. Exit codes: 0 done, 2 usage, 3 data, 4 diverged, 75 interrupted.
"""

USAGE, DATA, DIVERGED, INTERRUPTED = 2, 3, 4, 75


class UsageError(Exception):
    """A command, option or directory cannot be used as asked; nothing has been changed."""

    exit_code = USAGE


class DivergedError(Exception):
    """Training produced a non-finite number or broke an invariant; it stopped before the update."""

    exit_code = DIVERGED


class Interrupted(BaseException):
    """A signal asked the program to stop; what was begun is ended and saved. No ``Exception``: nothing that
    goes on after errors goes on after this."""

    exit_code = INTERRUPTED


class StoppedElsewhere(Exception):
    """Another of several processes failed and says why; this one only ends with it."""

    exit_code = 1
