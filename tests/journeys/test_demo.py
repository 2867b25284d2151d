"""`edgeml demo` on both brokers: the whole loop with real processes, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.journeys.conftest import KINDS

pytestmark = pytest.mark.journey


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of running processes that name `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended while we looked
            if str(folder) in line:
                found.append(line)
    return found


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HOME": str(folder.parent / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "edgeml", "demo", "-o", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("broker", KINDS)
def test_the_demo_ends_with_a_better_model_on_every_agent(tmp_path: Path, broker: str) -> None:
    folder = tmp_path / "demo"
    child = start(folder, "--broker", broker, "--json")
    out, said = child.communicate(timeout=240)
    assert child.returncode == 0, said
    told = json.loads(out)
    before, after = told["accuracy"]["before"], told["accuracy"]["after"]
    assert after > before + 0.03 and after > 0.93
    assert told["released"] and len(told["rounds"]) == 5
    assert all(done["participants"] == ["pi-1", "pi-2", "pi-3"] for done in told["rounds"])
    assert all(one["accuracy"] < after for one in told["alone"]), "an agent alone was enough"
    assert told["live"]["after"] > told["live"]["before"]
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert "pi-3" in page and told["released"] in page
    assert processes_of(folder) == []
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("*")), (
        "something was written under HOME"
    )


def interrupted(child: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; once more where Python lost it: what a signal raises in a hook of fork is printed and ignored."""
    child.send_signal(signal.SIGINT)
    try:
        return child.communicate(timeout=60)[1]  # the ends of ten processes, on a busy machine
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=40)[1]
        head, lost, rest = said.partition("Exception ignored in")
        assert lost, said  # nothing else excuses a second one
        return head + rest.replace("Traceback", "", 1)


@pytest.mark.fault
@pytest.mark.parametrize("after_s", [2.0, pytest.param(9.0, marks=pytest.mark.slow)])
def test_ctrl_c_ends_everything_the_demo_started(tmp_path: Path, after_s: float) -> None:
    folder = tmp_path / "demo"
    child = start(folder)
    while not folder.exists() and child.poll() is None:  # until then it is Python that starts
        time.sleep(0.05)
    time.sleep(after_s)
    said = interrupted(child)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert processes_of(folder) == []


@pytest.mark.fault
def test_a_killed_demo_takes_its_processes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    child = start(folder)
    deadline = time.monotonic() + 60
    while len(processes_of(folder)) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(processes_of(folder)) >= 4
    child.kill()
    child.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(folder) == []
