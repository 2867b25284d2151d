"""Instruction counts repeat: micro-models counted again on an emulated core are those of the committed data."""

import json
import operator
import shutil
from importlib import resources
from pathlib import Path

import pytest

from benchmarks.emulation.emulator import Emulator, instructions
from benchmarks.emulation.models import micro_models
from edgeml.bench.calibrate.blocks import EVICTION
from edgeml.bench.calibrate.work import works_of
from tests.emulated.board_root import Emulated

pytestmark = pytest.mark.emulated
COUNTED_AGAIN = ("pointwise int8 0", "pointwise few int8 0")


def test_micro_models_counted_again_execute_the_committed_number_of_instructions(
    board: Emulated, tmp_path: Path
) -> None:
    assert shutil.which("gcc"), "the plugin that counts is compiled here: install gcc"
    jobs = [job for job in micro_models() if job.name in COUNTED_AGAIN]
    assert len(jobs) == len(COUNTED_AGAIN)
    file = resources.files("edgeml.bench.predict") / "cycles" / f"{board.cpu}.json"
    body = json.loads(file.read_text(encoding="utf-8"))
    stored = {tuple(body["works"][at]): count for at, count, _ in body["samples"]}
    columns = operator.attrgetter(*body["columns"])
    for job, found in zip(jobs, Emulator({board.cpu: board.python}, tmp_path).count(board.cpu, jobs), strict=True):
        again = dict(zip(works_of([node for node, _ in found.nodes], job.model), found.nodes, strict=True))
        kept = {work: blocks for work, (node, blocks) in again.items() if not node.name.startswith(EVICTION)}
        assert kept
        for work, blocks in kept.items():
            if work.macs:  # what only moves copies by alignment, which differs from process to process
                assert instructions(blocks) == pytest.approx(stored[columns(work)], rel=0.01), work
