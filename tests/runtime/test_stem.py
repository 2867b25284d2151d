"""The process that children are forked from, and what an agent that does nothing has loaded.

Each scenario is a program of its own: a stem must be forked from a process with one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeml_runtime.plain_program import MAGIC
from edgeml_runtime.task_child import LOG
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import until
from tests.runtime.hostile_kit import COUNTED, GREEDY, WIDTH, an_order
from tests.runtime.hostile_kit import state as state  # a fixture: rows and folders of a device
from tests.runtime.test_task import second_moments

ECHO = """
import json, os, signal, sys, time
from pathlib import Path
from edgeml_runtime.stem import Stem, loads

def work(arguments):
    print("begun in", os.getpid(), file=sys.stderr)
    for line in sys.stdin.buffer:
        if line == b"fail\\n":
            raise RuntimeError("as it was told")
        os.write(1, b" ".join([*map(str.encode, arguments), line]))

stem, told = Stem(work), {}
errors = Path(sys.argv[1]).open("wb")
def child(*arguments):
    return stem.start(arguments, errors)
def say(to, line):
    to.stdin.write(line)
    to.stdin.flush()
    return to.stdout.readline().decode()
"""


def told(program: str, *arguments: object, closing: str = "") -> Any:
    """Return what `program` leaves in its dictionary `told`, started with the standard files that a shell closes."""
    command = [sys.executable, "-c", program + "\nprint(json.dumps(told))", *map(str, arguments)]
    command = ["sh", "-c", f'exec "$0" "$@" {closing}', *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_children_of_a_stem_answer_end_and_are_killed_like_any_other(tmp_path: Path) -> None:
    program = """
one, two, three = child("a", "b"), child("c"), child()
told["answers"] = [say(one, b"x\\n"), say(two, b"y\\n"), say(one, b"z\\n")]
told["alive"] = [one.poll(), two.poll()]
one.stdin.close()
told["ended"] = [one.wait(), one.poll()]
told["failed"] = [say(two, b"fail\\n"), two.wait()]
os.killpg(three.pid, signal.SIGKILL)  # a group of its own
told["killed"] = [three.wait(), three.stdout.read().decode()]
told["loads"] = [loads("json"), loads("no_such_module")]
"""
    found = told(ECHO + program, tmp_path / "errors")
    assert found["answers"] == ["a b x\n", "c y\n", "a b z\n"] and found["alive"] == [None, None]
    assert found["ended"] == [0, 0] and found["failed"] == ["", 1] and found["killed"] == [-9, ""]
    assert found["loads"] == [True, False]
    said = (tmp_path / "errors").read_text(encoding="utf-8")
    assert said.count("begun in") == 3 and "RuntimeError: as it was told" in said.splitlines()


def test_a_child_can_be_killed_with_its_group_as_soon_as_it_is_known(tmp_path: Path) -> None:
    program = """
told["ends"] = []
for _ in range(100):
    one = child()
    os.killpg(one.pid, signal.SIGKILL)
    told["ends"].append(one.wait())
    one.stdin.close(), one.stdout.close()
"""
    assert told(ECHO + program, tmp_path / "errors")["ends"] == [-9] * 100


@pytest.mark.parametrize("closing", ["<&-", "<&- 2>&-"], ids=["input", "input and errors"])
def test_an_agent_without_standard_files_has_children_all_the_same(tmp_path: Path, closing: str) -> None:
    program = """
one, two = child("a"), child("b")
told["answers"] = [say(one, b"x\\n"), say(two, b"y\\n"), say(one, b"z\\n")]
one.stdin.close()
told["ended"] = one.wait()
"""
    found = told(ECHO + program, tmp_path / "errors", closing=closing)
    assert found == {"answers": ["a x\n", "b y\n", "a z\n"], "ended": 0}, (tmp_path / "errors").read_text()


def test_a_stem_that_is_killed_takes_its_children_along_and_starts_no_more(tmp_path: Path) -> None:
    program = """
one = child()
(stem_id,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
os.kill(int(stem_id), signal.SIGKILL)
told["read"] = one.stdout.read().decode()
told["ended"], told["next"] = one.wait(), child() is None
"""
    assert told(ECHO + program, tmp_path / "errors") == {"read": "", "ended": -9, "next": True}


def test_a_stem_ends_with_the_agent(tmp_path: Path) -> None:
    program = """
one = child()
told["pids"] = [one.pid, *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
print(json.dumps(told), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", ECHO + program, str(tmp_path / "errors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9
    until(lambda: not any(alive(pid) for pid in json.loads(done.stdout)["pids"]), "the end of stem and child")


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


TASKS = """
import json, os, signal, sys
from pathlib import Path
from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.task_child import Order, TaskChild, grown
from edgeml_runtime.wire.plain import from_plain

state, told = Path(sys.argv[1]), {"names": [], "ends": []}
stem = grown(state)
child = TaskChild(state, memory=900 << 20, stem=stem)
for order, max_s in json.loads(sys.argv[2]):
    try:
        ran, update = child.run(from_plain(Order, order), max_s=max_s)
        told["ends"].append(ran.rows)
        told["names"].append(Path(f"/proc/{child._process.pid}/comm").read_text().strip())
    except TaskRefused as error:
        told["ends"].append(str(error))
    if len(sys.argv) > 3:
        (stem_id,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(stem_id), signal.SIGKILL)
        sys.argv.pop()
child.close()
"""


def orders(state: Path, *graphs: tuple[bytes, float]) -> str:
    return json.dumps([(to_plain(an_order(state, graph)), max_s) for graph, max_s in graphs])


def test_tasks_run_in_children_of_the_stem_within_their_bounds(state: Path) -> None:
    good = second_moments(WIDTH), 20.0
    found = told(TASKS, state, orders(state, good, (COUNTED, 1.0), (GREEDY, 20.0), good))
    first, late, greedy, last = found["ends"]
    assert first == last > 0 and found["names"] == ["edgeml-child"] * 2
    assert "Timeout: not done within 1 s" in late and any(w in greedy for w in ("memory", "bad_alloc", "OutOfMemory"))
    assert (state / "tasks" / LOG).exists()


def test_without_its_stem_an_agent_starts_the_child_as_a_program(state: Path) -> None:
    good = second_moments(WIDTH), 20.0
    found = told(TASKS, state, orders(state, good, good), "kill the stem after the first")
    assert found["names"][0] == "edgeml-child" and found["names"][1].startswith("python")


RACED = """
import time
task, told["ends"] = from_plain(Order, json.loads(sys.argv[2])[0][0]), []
for turn in range(30):
    child = TaskChild(state, memory=900 << 20, stem=stem)
    process = child._ready()
    child._busy = turn % 2 == 1  # as while it runs
    child.close()
    told["ends"].append(process.wait())
"""


def test_a_task_that_is_stopped_as_it_begins_is_gone(state: Path) -> None:
    good = second_moments(WIDTH), 20.0
    ends = told(TASKS.split("for order,")[0] + RACED, state, orders(state, good))["ends"]
    assert ends == [-9] * 30


IDLE = """
import json, sys
from pathlib import Path
from edgeml_runtime import __main__, config
from edgeml_runtime.agent import Agent
from edgeml_runtime.task_child import grown

state = Path(sys.argv[1])
settings = config.Config(device="pi-1", host="127.0.0.1", port=1, trusted=("00" * 32,), board="raspberry-pi-4")
config.enroll(state, settings)
agent = Agent(state, settings, stem=grown(state))
told = sorted(sys.modules)
"""
# what an agent imports at the first round, benchmark or deployment that wants it, and what it never does
HEAVY = (
    "asyncio concurrent multiprocessing unittest xml sqlalchemy onnx pandas scipy sklearn torch edgeml pydantic click "
    "onnxruntime.quantization onnxruntime.tools onnxruntime.transformers google.protobuf sympy flatbuffers "
    "numpy.random numpy.fft numpy.ma numpy.polynomial numpy.testing numpy.f2py "
    "cryptography.x509 cryptography.hazmat.backends.openssl cffi edgeml_runtime.doctor edgeml_runtime.local"
)


@pytest.mark.parametrize("program", [False, True], ids=["onnxruntime", "numpy program"])
def test_an_idle_agent_has_loaded_nothing_that_it_does_not_use(tmp_path: Path, program: bool) -> None:
    if program:  # what serves, as far as the agent looks before it starts
        (tmp_path / "slots/current").mkdir(parents=True)
        (tmp_path / "slots/current/model.onnx").write_bytes(MAGIC)
    loaded = told(IDLE, tmp_path)
    assert ("onnxruntime" in loaded) is not program
    assert not [name for name in loaded for heavy in HEAVY.split() if f"{name}.".startswith(f"{heavy}.")]
