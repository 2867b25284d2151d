"""What a command costs before it works, and what an unchanged build costs.

    python benchmarks/startup.py [--runs 9]

Whole processes, interleaved, medians; a bare `python -c pass` beside them, because seconds on a shared machine mean
little and ratios more. Writes results/startup.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
PYTHON = [sys.executable]
GOALS = {"edgeml --help": 0.2, "edgeml build, nothing changed": 3.0, "edgeml build on the digits": 60.0}
HEAVY = ("tensorflow", "sklearn", "onnx", "onnxruntime", "pandas")


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def heavy_modules() -> list[str]:
    """Return which heavy packages `import edgeml` opens: none is right."""
    code = f"import sys, edgeml; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    return subprocess.run([*PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        project.mkdir()
        (project / "edgeml.yaml").write_text("name: digits\ndata: {train: 'sklearn:digits'}\n", encoding="utf-8")
        build = [*PYTHON, "-m", "edgeml", "build", str(project), "--registry", f"{name}/registry"]
        times = {"edgeml build on the digits": [seconds(build)]}
        commands = {
            "python -c pass": [*PYTHON, "-c", "pass"],
            "import edgeml": [*PYTHON, "-c", "import edgeml"],
            "edgeml --help": [*PYTHON, "-m", "edgeml", "--help"],
            "edgeml build, nothing changed": build,
        }
        for command in commands.values():
            seconds(command)
        for _ in range(runs):
            for label, command in commands.items():
                times.setdefault(label, []).append(seconds(command))
    base = statistics.median(times["python -c pass"])
    table = ["| command | median s | max s | x bare Python | goal s |", "|---|---:|---:|---:|---:|"]
    for label, found in times.items():
        middle = statistics.median(found)
        table.append(f"| `{label}` | {middle:.3f} | {max(found):.3f} | {middle / base:.1f} | {GOALS.get(label, '')} |")
    heavy = heavy_modules()
    table += ["", f"Heavy packages that `import edgeml` opens: {', '.join(heavy) or 'none'}."]
    result = {"environment": environment(), "seconds": times, "goals": GOALS, "heavy": heavy}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "startup.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
