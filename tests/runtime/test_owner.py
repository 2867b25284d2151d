"""The owner's policy: what it says in words, how a line of it is changed, and which files are still read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgeml_runtime import owner
from edgeml_runtime.__main__ import main
from edgeml_runtime.config import CONFIG, KEPT, TASKS, Config, Policy, enroll, read_config
from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.kept import Kept
from edgeml_runtime.ledger import Ledger
from edgeml_runtime.wire.tasks import KINDS

KEY = "ab" * 32


def a_config(policy: Policy | None = None) -> Config:
    return Config(
        device="pi-1", host="127.0.0.1", port=1883, trusted=(KEY,), board="raspberry-pi-4", policy=policy or Policy()
    )


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("min_rows=50", "min_rows", 50),
        ("max_update_bytes=2M", "max_update_bytes", 2 << 20),
        ("max_task_s=.5", "max_task_s", 0.5),
        ("secure=yes", "secure", True),
        ("accept=training, drift", "accept", ("training", "drift")),
        ("accept=", "accept", ()),
        (f"task_keys={KEY}", "task_keys", (KEY,)),
    ],
)
def test_one_line_of_the_policy_is_changed_and_kept(tmp_path: Path, setting: str, name: str, value: object) -> None:
    enroll(tmp_path, a_config())
    assert main(["task-policy", "--state", str(tmp_path), "--set", setting]) == 0
    assert getattr(read_config(tmp_path).policy, name) == value


def test_limits_of_benchmarks_are_set_by_their_path() -> None:
    assert owner.changed(Policy(), ["bench.max_s=5", "min_rows=3"]).bench.max_s == 5.0


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("min_rows", "write NAME=VALUE"),
        ("min_row=1", "no 'min_row'; it has accept, min_rows"),
        ("min_rows=-1", "write a number of at least 0"),
        ("min_rows=1.5", "write a number of at least 0"),
        ("min_rows=nan", "write a number of at least 0"),
        ("secure=maybe", "write yes or no"),
        ("accept=training,mining", "accept has 'mining'"),
        ("noise=1", "noise 1 counts in clip_norms, and clip_norm is 0"),
        ("templates=abc", "templates has 'abc': write all of its 64"),
        ("bench.max=1", "no 'max'; it has max_s"),
    ],
)
def test_what_the_policy_cannot_be_is_said_and_nothing_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, why: str
) -> None:
    enroll(tmp_path, a_config())
    before = (tmp_path / CONFIG).read_bytes()
    assert main(["task-policy", "--state", str(tmp_path), "--set", "min_rows=7", "--set", setting]) == 4
    assert why in capsys.readouterr().err and (tmp_path / CONFIG).read_bytes() == before


def test_a_device_enrolled_before_there_were_other_kinds_goes_on_as_its_owner_said(tmp_path: Path) -> None:
    plain = {"device": "pi-1", "host": "h", "port": 1, "trusted": [KEY], "board": "b"}
    policy = {"accept": ["training", "bench"], "min_rows": 10, "max_update_bytes": 16 << 20}
    (tmp_path / CONFIG).write_text(json.dumps({**plain, "policy": policy}))
    found = read_config(tmp_path).policy
    assert found.accept == ("training", "bench") and found.tasks_per_day == Policy().tasks_per_day


def test_the_policy_is_told_in_words_with_what_came_of_it(tmp_path: Path) -> None:
    strict = Policy(
        accept=("training",),
        min_rows=50,
        clip_norm=1.0,
        noise=0.5,
        secure=True,
        task_keys=(KEY,),
        templates=("0" * 64,),
    )
    Ledger(tmp_path / TASKS / "ran.jsonl").note(
        {"at": 86_400.0, "round": "r-1", "kind": "training", "graph": "ab" * 32}
    )
    Kept(tmp_path / KEPT, most=1 << 20).after("r", "r-1", was={}, now={"c": np.zeros(4, np.float32)})
    os.utime(tmp_path / KEPT / "r.safetensors", (90_000, 90_000))
    said = list(owner.lines(tmp_path, a_config(strict), now=90_000.0))
    text = "\n".join(said)
    assert [line.split()[:2] for line in said[2:8]] == [
        ["yes" if k == "training" else "no", k] for k in (*KINDS, "bench")
    ]
    for part in (
        "50 or more (0 labelled here, 0 in all)",
        "clipped    to a norm of 1, or less",
        "noise      of 0.5 clip norms, or more",
        "under masks only",
        "only the 1 pinned: 0000000000000000",
        "only abababababababab",
        "1 of 2,000 runs in 24 hours",
        "training     r-1",
        "r: ",
    ):
        assert part in text
    assert owner.told(tmp_path, a_config(strict), now=90_000.0)["today"] == 1


def test_the_owner_may_make_the_device_forget(tmp_path: Path) -> None:
    kept = Kept(tmp_path / KEPT, most=1 << 20)
    for run in ("a", "b"):
        kept.after(run, f"{run}-1", was={}, now={"c": np.zeros(4, np.float32)})
    with pytest.raises(AgentRefused, match="no federation or model 'c' keeps anything here; known: a, b"):
        owner.forget(tmp_path, "c", most=1 << 20)
    assert owner.forget(tmp_path, "a", most=1 << 20) == ["a"]
    assert owner.forget(tmp_path, "all", most=1 << 20) == ["b"] and kept.held() == []
