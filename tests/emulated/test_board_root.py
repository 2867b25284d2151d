"""What the emulated boards are made of, checked without emulating anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.devices import find_board
from edgeml_runtime.doctor import CHECKS, Machine
from tests.emulated import board_root
from tests.emulated.boards import CORES, write_board

FROM_FILES = ("architecture", "cpu list", "governor", "power", "temperature", "memory", "swap", "memory limits")
every_board = pytest.mark.parametrize("name", board_root.BOARDS)


@every_board
def test_the_files_of_a_board_say_what_its_profile_says(name: str, tmp_path: Path) -> None:
    board = find_board(name)
    write_board(tmp_path, board)
    machine = Machine(state=tmp_path, root=tmp_path, machine=board.arch)
    found = {check: CHECKS[check](machine) for check in FROM_FILES}
    assert {check for check, finding in found.items() if finding.level != "ok"} == {"memory limits"}
    assert found["architecture"].detail == f"{board.arch} {board.core} {board.title}"
    assert f"of {board.memory_limit_mb:,} MiB" in found["memory"].detail
    assert found["cpu list"].detail.startswith(f"{board.cores} of")
    assert ("asimddp" in machine.cpuinfo("Features").split()) == board.dot_product
    assert machine.number("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq") == board.frequency_ghz * 1e6
    assert machine.read("sys/devices/system/cpu/cpu0/cache/index2/size") == f"{board.l2_kb}K"


@every_board
def test_a_board_is_emulated_as_a_core_that_it_has(name: str) -> None:
    board = find_board(name)
    assert board.core in CORES and board_root.qemu_cpu(board) == board.core.lower() != "max"


def test_a_folder_is_made_once_for_equal_inputs_and_again_after_it_was_not_finished(tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "content").touch()

    first = board_root._made(tmp_path, "kind", ["a", "b"], make=make)
    assert board_root._made(tmp_path, "kind", ["a", "b"], make=make) == first and calls == [first]
    assert board_root._made(tmp_path, "kind", ["a", "c"], make=make) != first
    (first / "complete").unlink()
    (first / "half").touch()
    assert board_root._made(tmp_path, "kind", ["a", "b"], make=make) == first and not (first / "half").exists()
    assert len(calls) == 3


def test_what_python_and_builds_leave_behind_makes_nothing_new() -> None:
    before = board_root._digest_of("runtime", "devices")
    assert before == board_root._digest_of("runtime", "devices") != board_root._digest_of("runtime")
    left = {path.name for path in board_root._tree(iter([board_root.PROJECT / "runtime"]))}
    assert "doctor" not in left and "wheel.py" in left and not any(name.endswith(".pyc") for name in left)


def test_only_the_agents_used_last_are_kept(tmp_path: Path) -> None:
    folders = [board_root._made(tmp_path, "agent", [str(i)], make=lambda folder: None) for i in range(5)]
    board_root._forget_old(tmp_path, folders[-1])
    assert len(list(tmp_path.glob("agent-*"))) == board_root.KEEP and folders[-1].exists()


def test_a_command_that_fails_says_what_it_was_for() -> None:
    with pytest.raises(board_root.CannotEmulate, match=r"cannot fetch Debian: it said nothing"):
        board_root._run(["false"], what="fetch Debian")


def test_a_tool_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no apt-get either
    with pytest.raises(board_root.CannotEmulate) as caught:
        board_root._need({"no-such-tool": "such-package", "no-other": "a-package"})
    install = "sudo apt-get install -y --no-install-recommends a-package such-package"
    assert str(caught.value) == f"a-package, such-package not installed: {install}"
