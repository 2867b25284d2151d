"""Rounds on a terminal: a table that is drawn anew; on a pipe: a line each."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

SCRIPT = """
from types import SimpleNamespace
from edgeml.cli.screen import Rounds, Screen
with Screen() as screen, Rounds(screen) as shown:
    for k in (1, 2, 3):
        shown.add(SimpleNamespace(round=k, participants=["a"] * 1200, rows=5000, metric=0.2 * k, loss=1 / k,
                                  bytes_up=123456, bytes_down=654321, seconds=0.5, epsilon=1.5 * k))
"""


def test_a_terminal_shows_a_growing_table_with_a_bar() -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=child, env=environment)
    os.close(child)
    said = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the child closed its side
            break
        if not part:
            break
        said += part
    assert process.wait() == 0
    os.close(parent)
    text = said.decode()
    last = text[text.rindex("round") :]
    assert all(word in last for word in ("devices", "epsilon", "1,200", "0.6000", "━", "4.50", "123", "654"))
    assert last.count("1,200") == 3 and text.count("epsilon") <= 4, "drawn once a round, and at the end"


def test_a_pipe_gets_one_line_a_round() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "round" in line]
    assert len(lines) == 3 and "1,200 devices" in lines[0] and "epsilon 4.50" in lines[2]
