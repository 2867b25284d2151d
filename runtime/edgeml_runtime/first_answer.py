"""The child of `cold_start`: loads a model, answers, prints as JSON what each step took and the memory it holds."""

from __future__ import annotations

import time

BEGUN = time.monotonic()  # the parent reads the same clock; before anything heavy is imported

import importlib  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

STEADY_RUNS = 20
RESERVED = 256 << 20  # Python and onnxruntime reserve most of this without touching it


def main(model: str, rows: str, settings: str) -> dict[str, float]:
    """Return milliseconds of import, session and first answer, megabytes before and after, and the start's clock."""
    clock = [time.perf_counter()]
    session_module = importlib.import_module("edgeml_runtime.session")
    numpy = importlib.import_module("numpy")
    if not session_module.is_program(model):
        importlib.import_module("edgeml_runtime.ort_session")
    clock.append(time.perf_counter())
    with numpy.load(rows) as file:
        feeds = {name: file[name].astype(object) if file[name].dtype.kind == "U" else file[name] for name in file}
    bare = _memory()["Rss"]
    _limit_memory()
    clock.append(time.perf_counter())
    session = session_module.Session(model, session_module.Settings(**json.loads(settings)))
    clock.append(time.perf_counter())
    session.run(feeds)
    clock.append(time.perf_counter())
    for _ in range(STEADY_RUNS):
        session.run(feeds)
    memory = _memory()
    return {
        "process_ms": BEGUN,
        "import_ms": (clock[1] - clock[0]) * 1e3,
        "session_ms": (clock[3] - clock[2]) * 1e3,
        "first_ms": (clock[4] - clock[3]) * 1e3,
        "peak_mb": _memory("/proc/self/status")["VmHWM"],  # getrusage would count what was before exec, too
        "steady_mb": memory["Rss"],
        "anonymous_mb": memory["Anonymous"],
        "bare_mb": bare,
    }


def _limit_memory() -> None:
    """Let what is more than is free become an error to read, not the end of some other process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    free = int(_memory("/proc/meminfo")["MemAvailable"] * 1e6) + RESERVED
    limits = [limit for limit in (soft, hard, free) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def _memory(file: str = "/proc/self/smaps_rollup") -> dict[str, float]:
    """Return the megabytes of this process by their names (man 5 proc_pid_smaps, proc_pid_status)."""
    fields = (line.split() for line in Path(file).read_text(encoding="utf-8").splitlines())
    return {field[0].removesuffix(":"): int(field[1]) * 1024 / 1e6 for field in fields if field[-1:] == ["kB"]}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
