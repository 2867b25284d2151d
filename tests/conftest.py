"""Fixtures that every room's tests share: real data, brokers on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says something of the machine, nothing of the code
settings.register_profile("edgeml", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeml")

# a job in the background of a shell is born deaf to Ctrl-C, and so would be every process the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

# what takes seconds to make once, the processes of all tests share, whatever HOME they are given
os.environ.setdefault("EDGEML_CACHE", str(Path.home() / ".cache/edgeml"))

# workers of pytest have the cores already: threads of scikit-learn's loops would spin while they wait for one
os.environ.setdefault("OMP_NUM_THREADS", "1")

TIERS = ("slow", "runtimes", "oracles", "emulated")  # minutes, packages to install: each runs when `-m` names it

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a tier out of a run that does not ask for it."""
    unasked = [tier for tier in TIERS if tier not in config.getoption("-m")]
    left = [item for item in items if any(item.get_closest_marker(tier) for tier in unasked)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def throwaway(folder: Path, needs: Sequence[str]) -> Path:
    """Return a Python of its own in `folder` that has what it `needs`, by pip; the test fails where that fails."""
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", *needs]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"cannot make a Python with {' and '.join(needs)}: {done.stderr.strip()[-400:]}")
    return python


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a data set's name to its path; a set that is not there skips the test."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not in {DATA}: set EDGEML_DATA to the folder that holds it")
        return path

    return find
