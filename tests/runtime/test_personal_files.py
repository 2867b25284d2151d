"""The files of a device's own tensors: what deaths, forgetting and time leave of them, and who may change them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeml_runtime import local, serving
from edgeml_runtime import owner as owner_side
from edgeml_runtime.config import PERSONAL, SAMPLES, Config, Policy, enroll
from edgeml_runtime.owned import OwnTensors
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.samples import Samples
from edgeml_runtime.slots import Slots
from edgeml_runtime.wire import signed
from tests.runtime.personal_kit import (
    MOST,
    RUN,
    Bench,
    a_personal_release,
    csv_of,
    own_head,
    own_labels,
    refused,
)
from tests.runtime.personal_kit import bench as bench
from tests.runtime.releases import KEY


def test_an_agent_that_died_twice_over_them_leaves_them(bench: Bench) -> None:
    bench.keep(own_head())
    release = a_personal_release()
    slot = bench.install(release)
    tensors_here = OwnTensors(bench.state / PERSONAL, bench.kept, most=MOST)
    tensors_here.of(release.manifest)
    tensors_here.begin("digits")
    assert bench.load(slot).released is not None, "a power cut is no reason"
    tensors_here.begin("digits")
    tensors_here.begin("digits")
    assert "killed 2 times" in refused(bench.load(slot))


_DIES = """
import os, signal, sys
from pathlib import Path
from edgeml_runtime import personal, serving
from edgeml_runtime.config import Policy, SAMPLES
from edgeml_runtime.samples import Samples
from edgeml_runtime.slots import Slots
personal.Session = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
state = Path(sys.argv[1])
slot = Slots(state / "slots").current
personal.OwnModels(state, Policy(), Samples(state / SAMPLES)).over(slot, serving.load(slot))
"""


@pytest.mark.parametrize("swept_by", ["start", "forget", "expire"])
def test_no_copy_of_own_tensors_outlives_a_killed_agent(bench: Bench, swept_by: str) -> None:
    bench.keep(own_head())
    slots = Slots(bench.state / "slots")
    slots.activate(bench.install(a_personal_release()))
    died = subprocess.run([sys.executable, "-c", _DIES, str(bench.state)], check=False).returncode
    assert died == -signal.SIGKILL
    folder, held = bench.state / PERSONAL, "digits.safetensors"
    (copy,) = folder.glob("*.onnx")
    assert own_head()["w2"].tobytes() in copy.read_bytes()
    (folder / "digits.safetensors.new").write_bytes(b"half of it")
    if swept_by == "forget":
        assert owner_side.forget(bench.state, "digits", most=MOST) == ["digits"]
    elif swept_by == "expire":
        OwnTensors(folder, bench.kept, most=MOST).expire(time.time() + 91 * 86_400)
    else:
        OwnModels(bench.state, Policy(), bench.samples)
    left = {path.name for path in folder.iterdir()}
    assert left == ({held, "digits.trying"} if swept_by == "start" else set())


def test_forgetting_a_federation_takes_the_half_written_copy_along(bench: Bench) -> None:
    bench.keep(own_head())
    (bench.state / PERSONAL).mkdir()
    (bench.state / PERSONAL / "digits.safetensors.new").write_bytes(b"half of it")
    assert owner_side.forget(bench.state, RUN, most=MOST) == [RUN]
    assert not list((bench.state / PERSONAL).iterdir())


def test_own_tensors_expire_when_nobody_uses_them_and_the_log_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    loaded, path = bench.load(slot), bench.state / PERSONAL / "digits.safetensors"
    day, now = 86_400.0, time.time()
    os.utime(path, (now - 89 * day, now - 89 * day))
    assert bench.load(slot).released is not None and path.stat().st_mtime >= now, "a start uses them"
    os.utime(path, (now - 91 * day, now - 91 * day))
    own = OwnTensors(bench.state / PERSONAL, bench.kept, most=MOST)
    own.used("digits")
    own.expire()
    assert path.is_file(), "those of an agent that runs for years are in use"
    os.utime(path, (now + day, now + day))
    own.used("digits")
    assert path.stat().st_mtime > now + day / 2, "a clock that was set back makes nothing older"
    os.utime(path, (now - 91 * day, now - 91 * day))
    assert bench.load(slot).personal is None and not path.exists()
    assert "own tensors of digits: not used for 90 days, deleted" in caplog.text
    own.used("digits")
    assert loaded.released is not None and not path.exists()


def test_a_model_that_answers_is_noted_once_a_day_and_the_release_is_not(bench: Bench) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    own = OwnModels(bench.state, Policy(), bench.samples)
    loaded, path = own.over(slot, serving.load(slot)), bench.state / PERSONAL / "digits.safetensors"
    release = serving.load(slot)
    turns = [(0, None, False), (1, release, False), (2, loaded, True), (86_000, loaded, False), (86_402, loaded, True)]
    for now, serves, noted in turns:
        os.utime(path, (5.0, 5.0))
        own.note_use(serves, now)
        assert (path.stat().st_mtime > 5.0) == noted, now


def _on_disk(state: Path) -> dict[str, tuple[bytes, int]]:
    found = {str(path.relative_to(state)): path for path in state.rglob("*") if path.is_file()}
    return {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in found.items()}


def _ask_the_disk(bench: Bench) -> Any:
    before = _on_disk(bench.state)
    told = local.predict(bench.state, csv_of(bench.state.parent))
    assert _on_disk(bench.state) == before, "asking changed, made or deleted something"
    return told


def test_predict_from_the_disk_only_reads(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path / "state")
    enroll(bench.state, Config(device="pi-1", host="h", port=1, trusted=(signed.public_hex(KEY),), board="b"))
    Slots(bench.state / "slots").activate(slot := bench.install(a_personal_release()))
    bench.samples.close()
    bench.keep(own_head())
    assert "personal" not in _ask_the_disk(bench), "what a federation kept is taken over by the agent alone"
    bench.samples = Samples(bench.state / SAMPLES)
    bench.load(slot)
    bench.samples.close()
    folder = bench.state / PERSONAL
    old = time.time() - 91 * 86_400
    os.utime(folder / "digits.safetensors", (old, old))
    (folder / "digits.trying").write_text('{"begun": 1}')
    (folder / "trial-1.onnx").write_bytes(b"of another process")
    told = _ask_the_disk(bench)
    assert told["personal"] is True and told["labels"] == [str(one) for one in own_labels()]
    (folder / "digits.trying").write_text('{"begun": 2}')
    assert "personal" not in _ask_the_disk(bench)
    (folder / "digits.trying").unlink()
    (bench.state / SAMPLES).unlink()
    assert "personal" not in _ask_the_disk(bench), "no rows to judge by"
