"""What a command does first, before it imports PyTorch, which takes seconds."""

import ctypes
import os
import platform
import signal

KEEP_MEMORY = "KEEP_MEMORY"  # the environment variable; 0 leaves the allocator as it is
# Of malloc.h. A block of M_MMAP_THRESHOLD bytes or more is mapped alone, and unmapped when it is
# freed. More than M_TRIM_THRESHOLD free bytes at the top of the heap go back to the kernel.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GIGABYTE = 1 << 30


def begin() -> None:
    """Let Ctrl-C end the process without a traceback until `utils.run_script` takes over, reopen
    the standard streams that the shell closed (`>&-`), and keep freed memory.

    Without the reopened streams, the next file opened would become standard output.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if os.environ.get(KEEP_MEMORY) != "0":
        keep_memory()


def keep_memory() -> bool:
    """Have glibc keep freed blocks for the next ones; returns whether it does.

    A training step frees tensors of 8 to 17 MB and allocates them again. Each time, glibc would
    return their pages to the kernel, which then has to clear new ones. Does nothing without glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # glibc before 2.35 refuses more than 32 MB for the first.
    mapped = any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (GIGABYTE, GIGABYTE >> 5))
    return bool(mapped and libc.mallopt(M_TRIM_THRESHOLD, 2 * GIGABYTE - 1))
