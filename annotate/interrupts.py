"""What Ctrl-C and SIGTERM do: the command unwinds, one line, status 130; where that does not end soon, it ends anyway.

Python calls a signal's handler in the main thread, between two of its steps: never while that thread is in native code (a
network's batch, a flush to a slow disk). The number of the signal goes to a thread of its own as well, by a pipe that the system
itself writes to; that thread ends the process when its time is up. Parts and tables are replaced atomically and locks go with
the process, so an end at any instant loses nothing.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import select
import shutil
import signal
import threading
import time
from typing import Final

from annotate.console import INTERRUPTED, INTERRUPTED_TEXT

UNWIND_S: Final = 8.0  # seconds that the command has to unwind; a second signal ends it at once
SAY_S: Final = 1.0  # seconds that stderr has to take the last line
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

came = threading.Event()  # a signal was handled


def watch() -> None:
    """From here on, unwind on SIGTERM and SIGINT; for the main thread."""
    _start_watcher()
    for number in SIGNALS:
        signal.signal(number, _unwind)


def _unwind(*_: object) -> None:
    came.set()
    raise KeyboardInterrupt


@functools.cache
def _start_watcher() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_wait_and_end, args=(read,), name="interrupts", daemon=True).start()


def _wait_and_end(pipe: int) -> None:
    _next_signal(pipe, None)
    _next_signal(pipe, UNWIND_S)
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], SAY_S)[1]:  # nobody may be reading it
            os.write(2, f"\nannotate: {INTERRUPTED_TEXT}\n".encode())
    leave(INTERRUPTED)


def _next_signal(pipe: int, wait_s: float | None) -> None:
    """Return when a signal came that `watch` handles, or after `wait_s`."""
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not select.select([pipe], [], [], left)[0]:
            return
        number = os.read(pipe, 1)[0]
        if number in SIGNALS and signal.getsignal(number) is _unwind:
            return


def leave(status: int) -> None:
    """Kill what this process started and end it, without the interpreter's way out: that waits for workers, or starts new ones.

    Loky's resource tracker goes first and stderr is closed, for both would complain of what goes after; its work is done here.
    """
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        _kill_children()
        _kill_children()  # those that a thread of the pool was starting
        for path in glob.glob(f"/dev/shm/sem.loky-{os.getpid()}-*"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        for path in glob.glob(f"/dev/shm/joblib_memmapping_folder_{os.getpid()}_*"):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os._exit(status)


def _kill_children() -> None:
    import psutil

    def is_tracker(child: psutil.Process) -> bool:
        try:
            return any("resource_tracker" in word for word in child.cmdline())
        except psutil.Error:
            return False

    for child in sorted(psutil.Process().children(recursive=True), key=is_tracker, reverse=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
