"""A training graph trains alike on every onnxruntime from the oldest to the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.autodiff.learners import NETS, keep
from tests.runtimes.conftest import VERSIONS
from tests.runtimes.test_oldest import replayed

pytestmark = pytest.mark.runtimes
CLOSE = 1e-4  # of an output's largest value, after up to six steps: kernels add in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of steps and tasks of every kind of layer, with what they answer here."""
    made = tmp_path_factory.mktemp("training")
    for name in NETS:
        keep(made, name)
    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_steps_and_tasks_load_and_answer_alike(version: str, python_with: object, folder: Path) -> None:
    told = replayed(python_with(version), folder)
    assert told["version"] == version
    assert told["found"].keys() == {f"{name}-{kind}" for name in NETS for kind in ("step", "task")}
    wrong = {name: far for name, far in told["found"].items() if isinstance(far, str) or far > CLOSE}
    assert not wrong
