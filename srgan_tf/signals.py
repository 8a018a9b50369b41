"""Signals that end a process: what is being done is finished first; what killed ones left."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def caught() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""
    received = []

    def handler(signum, _):
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def is_gone(process: str) -> bool:
    """Tells whether a process, by its number in a name, is no more; no where it cannot be asked."""
    if os.name != "posix" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's
    return False
