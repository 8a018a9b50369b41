"""What libraries write to stderr past Python, kept from the eyes of who runs a script."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hides it while the context lasts, such as how TensorFlow looks for a GPU.

    No log level silences that. What Python itself writes to stderr is still seen.
    """
    with contextlib.ExitStack() as stack:
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        if sys.stderr is sys.__stderr__:
            own = stack.enter_context(open(os.dup(2), "w"))
            stack.enter_context(contextlib.redirect_stderr(own))
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
