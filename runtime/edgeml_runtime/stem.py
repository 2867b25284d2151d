"""A process that forks the agent's children: they share the pages of what it has imported instead of importing anew.

The stem is forked from the agent before that opens a file, reads a key or starts a thread, and does nothing but wait,
so its pages stay the agent's own. A child is there within milliseconds and holds what it writes to, instead of
25 MB of its own for Python, numpy and onnxruntime. Where the stem is gone, children are started as programs.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import IO, Any, NoReturn

from edgeml_runtime.children import die_with, limit, rename

Work = Callable[[Sequence[str]], None]
MAX_REQUEST = 64 << 10
ALIVE = 1 << 16  # said in place of an exit code


def loads(module: str) -> bool:
    """Return whether `module` can be imported here, as a process finds out that may die of it."""
    if not (child := os.fork()):
        code = 1
        try:
            limit(0, 0)  # no core dump
            importlib.import_module(module)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


class Sprout:
    """A child of the stem, handled as a `subprocess.Popen` is."""

    def __init__(self, stem: Stem, pid: int, pipes: tuple[IO[bytes], IO[bytes]]) -> None:
        self._stem, self.pid, (self.stdin, self.stdout) = stem, pid, pipes
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, negative for a signal; None while it lives."""
        return self._ended(wait=False)

    def wait(self) -> int:
        """Return how it ended, once it has."""
        code = self._ended(wait=True)
        assert code is not None
        return code

    def _ended(self, *, wait: bool) -> int | None:
        if self._code is None:
            self._code = self._stem.ended(self.pid, wait=wait)
        return self._code


class Stem:
    """The agent's side. Construct it while this process has one thread."""

    def __init__(self, work: Work) -> None:
        """Fork the stem, whose children do `work` with the arguments that `start` is given."""
        self._lock = threading.Lock()
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # the collector writes to what it looks at, and what is written to is shared no more
        agent = os.getpid()
        if not os.fork():
            self._door.close()
            _wait_for_requests(theirs, agent, work)
        theirs.close()

    def start(self, arguments: Sequence[str], errors: IO[bytes]) -> Sprout | None:
        """Return a new child whose standard error is `errors`; None when the stem is gone."""
        (order_in, order_out), (answer_in, answer_out) = os.pipe(), os.pipe()
        try:
            pid = self._ask({"start": list(arguments)}, (order_in, answer_out, errors.fileno()))
        finally:
            os.close(order_in)
            os.close(answer_out)
        pipes = os.fdopen(order_out, "wb"), os.fdopen(answer_in, "rb")
        if pid is not None:
            return Sprout(self, pid, pipes)
        for pipe in pipes:
            pipe.close()
        return None

    def ended(self, pid: int, *, wait: bool) -> int | None:
        """Return how the child `pid` ended; None while it lives. Children end with the stem."""
        told = self._ask({"wait" if wait else "poll": pid})
        return -signal.SIGKILL if told is None else None if told == ALIVE else told

    def _ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> int | None:
        try:
            with self._lock:
                socket.send_fds(self._door, [json.dumps(request).encode()], files)
                answer = self._door.recv(MAX_REQUEST)
        except OSError:
            return None
        return int(answer) if answer else None


def _wait_for_requests(door: socket.socket, agent: int, work: Work) -> NoReturn:
    """The stem's whole life."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the agent; the stem goes when that has gone
        signal.signal(number, signal.SIG_IGN)
    die_with(agent)
    rename("edgeml-stem")
    stem = os.getpid()
    with contextlib.suppress(OSError):
        while True:
            message, files, _, _ = socket.recv_fds(door, MAX_REQUEST, 3)
            if not message:
                break
            request = json.loads(message)
            if "start" in request:
                told = os.fork()
                if not told:
                    door.close()
                    die_with(stem)
                    _become(work, request["start"], files)
                os.setpgid(told, told)  # before the answer: the agent may kill the group at once
                for file in files:
                    os.close(file)
            else:
                told = _ended(**request)
            door.send(str(told).encode())
    os._exit(0)


def _ended(wait: int = 0, poll: int = 0) -> int:
    try:
        pid, status = os.waitpid(wait or poll, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if pid else ALIVE


def _become(work: Work, arguments: Sequence[str], files: Sequence[int]) -> NoReturn:
    """Be the child: do the work between these three files, and end as a process of its own would."""
    code = 1
    try:
        os.setpgid(0, 0)  # the stem says so too; who comes first is not known
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        rename("edgeml-child")
        moved = [fcntl.fcntl(file, fcntl.F_DUPFD, len(files)) for file in files]  # out of the way of their places
        for file in files:
            os.close(file)
        for place, file in enumerate(moved):
            os.dup2(file, place)
            os.close(file)
        sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(2, "w", 1)  # the agent's own may have been closed
        work(arguments)
        code = 0
    except BaseException:  # there is nobody above; the agent reads the last line of it
        traceback.print_exc()
    finally:
        os._exit(code)
