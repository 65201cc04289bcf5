"""Several processes that answer on the same sockets: a parent starts them, replaces one that dies, and ends them.

The parent opens no store and answers nothing. It binds the sockets, and its workers take connections from them in
whatever order the system gives them out. A worker that dies loses what it had not acknowledged; connections that nobody
had taken yet are taken by the others. A worker whose parent dies ends as on SIGTERM: it reads from a pipe that only the
parent can write to, and that ends with it.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from socket import socket
from types import FrameType
from typing import NoReturn

LONG_ENOUGH_SECONDS = 10.0
"""A worker that has lived for so long is replaced at once."""

_PAUSES_SECONDS = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0)
"""How long to wait with the next start, after so many in a row that have ended before that."""

_STEP_SECONDS = 0.1

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)


class Child:
    """What a worker knows of its parent.

    is_first  whether it is the first of all that were started, which speaks for all of them
    parent    a file that has an end when the parent has died
    """

    def __init__(self, is_first: bool, parent: int, ready: int) -> None:
        self.is_first = is_first
        self.parent = parent
        self._ready = ready

    def started(self) -> None:
        """Tell the parent that requests are being answered."""
        os.write(self._ready, b"\n")
        os.close(self._ready)


class Parent:
    """The parent of `count` processes that each do `work`, which returns at their end, or raises.

    sockets  those that they listen on. They are closed here, too, when the end begins: else the system would go on to
             accept connections, which nobody takes
    """

    def __init__(self, count: int, sockets: Sequence[socket], work: Callable[[Child], None]) -> None:
        self._count = count
        self._sockets = sockets
        self._work = work
        self._alive: dict[int, float] = {}  # by process, when it was started
        self._ending = False
        self._failures = 0
        self._parent, self._lifeline = os.pipe()

    def run(self) -> int:
        """Keep them at work until SIGINT or SIGTERM, and then wait for their ends. A second signal kills them, wherever
        they are. The exit status: 0 if all have ended in order; the first worker's, if it cannot start."""
        for number in _SIGNALS:
            signal.signal(number, self._end)
        gc.collect()
        gc.freeze()  # what is there now, the workers share
        if not self._start(is_first=True):
            return self._buried() if self._alive else 0
        for _ in range(self._count - 1):
            self._start()
        worst = 0
        while self._alive:
            status = self._buried()
            if self._ending:
                worst = max(worst, abs(status))
            else:
                self._replace(status)
        return worst

    def _end(self, number: int, _frame: FrameType | None) -> None:
        for listener in self._sockets:
            listener.close()
        for process in list(self._alive):
            os.kill(process, signal.SIGKILL if self._ending else number)
        self._ending = True

    def _start(self, is_first: bool = False) -> bool:
        """Start a worker, unless the end has begun. Whether it has come to answer requests; else it has ended, or is
        about to."""
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until it is known to whoever passes them on
        if self._ending:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return False
        started, ready = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(started)
            os.close(self._lifeline)
            self._be(Child(is_first, self._parent, ready))
        self._alive[process] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(ready)
        with open(started, "rb", buffering=0) as pipe:
            return bool(pipe.read(1))

    def _be(self, child: Child) -> NoReturn:
        """What a worker does, from its beginning to its end."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl+C is for the parent, which passes it on; twice would be a second signal
            for number in _SIGNALS:
                signal.signal(number, _leave)  # until the work has its own way to end
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._work(child)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _buried(self) -> int:
        """Wait until a worker ends. Its exit status; negative: the number of the signal that has killed it."""
        process, result = os.waitpid(-1, 0)
        while process not in self._alive:  # process 1 of a container is given the children of those that have ended
            process, result = os.waitpid(-1, 0)
        self._failures = 0 if time.monotonic() - self._alive.pop(process) > LONG_ENOUGH_SECONDS else self._failures + 1
        return os.waitstatus_to_exitcode(result)

    def _replace(self, status: int) -> None:
        _log.warning("a worker has %s; another one takes its place", _how(status))
        self._rest(_PAUSES_SECONDS[min(self._failures, len(_PAUSES_SECONDS) - 1)])
        self._start()

    def _rest(self, seconds: float) -> None:
        """Do nothing for so long, unless the end begins."""
        until = time.monotonic() + seconds
        while not self._ending and time.monotonic() < until:
            time.sleep(_STEP_SECONDS)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """What a signal does to a worker that is still starting: it has accepted nothing, so this is an end in order."""
    os._exit(0)


def _how(status: int) -> str:
    """How a process has ended, in words."""
    return f"ended with status {status}" if status >= 0 else f"been killed by {signal.Signals(-status).name}"
