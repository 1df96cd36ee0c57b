"""What a command does first, before it imports PyTorch, which takes seconds."""

import os
import signal


def begin() -> None:
    """Let Ctrl-C end the process without a traceback, until `utils.run_script` takes over, and
    open what the shell has closed (`>&-`).

    Without that the next file that is opened would be standard output, and whatever is printed
    would be written into it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
