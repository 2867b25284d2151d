"""The doctor: every check against a made-up root folder, the table's contract, and this machine itself."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.config import Config, enroll
from edgeml_runtime.doctor import CHECKS, Finding, Machine, examine, power, room, service, system, wheel
from edgeml_runtime.doctor.machine import processors
from tests.runtime.broken_boards import A76, CASES, CLOCK, CPU, SETTINGS, a_machine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found_and_has_a_way_out(case: str, tmp_path: Path) -> None:
    name, changes, level, says, fix = CASES[case]
    found = CHECKS[name](a_machine(tmp_path, **changes))
    assert found.level == level, found
    assert re.search(says, found.detail) and re.search(fix, found.fix), found


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "broker"])
def test_a_healthy_board_has_nothing_to_repair(name: str, tmp_path: Path) -> None:
    assert CHECKS[name](a_machine(tmp_path)).level == "ok", CHECKS[name](a_machine(tmp_path))


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_answers_on_a_machine_that_tells_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bare = Machine(state=tmp_path / "not/there/yet", root=tmp_path / "empty")
    found = CHECKS[name](bare)
    assert found.detail and len(found.detail.splitlines()) == 1 and len(found.fix.splitlines()) <= 1
    assert (found.level == "ok") == (not found.fix)


def test_a_finding_without_a_way_out_is_a_mistake_of_ours() -> None:
    for level, fix in (("warn", ""), ("fail", ""), ("ok", "reboot")):
        with pytest.raises(ValueError, match="fix"):
            Finding(level, "it is so", fix)  # type: ignore[arg-type]


def test_what_the_checks_look_at_is_used_up_by_the_cases() -> None:
    """A new check needs a case of what is wrong; these are tested below by themselves."""
    assert CHECKS.keys() - {name for name, *_ in CASES.values()} == {"onnxruntime", "import", "disk"}


@pytest.mark.parametrize(
    ("version", "files", "machine", "level", "says"),
    [
        ("1.32.0", {}, "aarch64", "ok", "1.32.0"),
        ("1.21.0", {}, "aarch64", "fail", "illegal instruction"),
        ("1.21.0", {"proc/cpuinfo": A76}, "aarch64", "warn", "illegal instruction"),
        ("1.21.0", {}, "x86_64", "warn", "illegal instruction"),
        ("1.22.0", {}, "aarch64", "warn", "aborts"),
        ("1.22.0", {f"{CPU}/possible": None}, "aarch64", "fail", "aborts"),
        ("1.24.2", {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}, "aarch64", "fail", "Orin"),
        ("1.24.2", {}, "aarch64", "warn", "Orin"),
        ("1.20.1", {}, "aarch64", "warn", "older than"),
    ],
)
def test_versions_that_die_are_refused_on_the_boards_where_they_die(
    version: str, files: dict[str, str | bytes | None], machine: str, level: str, says: str, tmp_path: Path
) -> None:
    found = wheel.judge(version, a_machine(tmp_path, files, machine=machine))
    assert (found.level, says in found.detail) == (level, True), found
    assert found.level == "ok" or wheel.REQUIREMENT in found.fix


def test_the_wanted_onnxruntime_is_the_one_of_the_package() -> None:
    text = configparser.ConfigParser()
    text.read(ROOT / "runtime/setup.cfg")
    (line,) = [line for line in text["options"]["install_requires"].splitlines() if line.startswith("onnxruntime")]
    wanted, _, where = line.partition(";")
    assert wanted.replace(" ", "") == wheel.REQUIREMENT and "armv7l" in where


@pytest.mark.parametrize(
    ("code", "errors", "says"),
    [
        (-signal.SIGILL, "", "SIGILL: illegal instruction: Cortex-A72 lacks an instruction that onnxruntime"),
        (-signal.SIGSEGV, "", "SIGSEGV: segmentation fault"),
        (-signal.SIGABRT, "", "SIGABRT"),
        (-signal.SIGKILL, "", "SIGKILL.*memory"),
        (-signal.SIGTERM, "", "SIGTERM"),
        (1, "Traceback\nModuleNotFoundError: No module named 'onnxruntime'\n", "status 1: ModuleNotFoundError"),
        (1, "", "it said nothing"),
    ],
)
def test_the_end_of_the_child_is_told_in_words(code: int, errors: str, says: str, tmp_path: Path) -> None:
    found = wheel.explain(code, errors, a_machine(tmp_path))
    assert found.level == "fail" and re.search(says, found.detail), found


def test_a_clock_behind_the_agents_last_run_or_its_release_is_seen(tmp_path: Path) -> None:
    machine = a_machine(tmp_path)
    enroll(machine.state, SETTINGS)
    assert service.clock(machine).level == "ok"
    found = service.clock(a_machine(tmp_path, now=time.time() - 3600))
    assert found.level == "warn" and "the agent last ran" in found.detail
    slot = machine.state / "slots/a"
    slot.mkdir(parents=True)
    (slot / "manifest.json").write_text(json.dumps({"signed": {"created": "2099-01-01T00:00:00+00:00"}}))
    found = service.clock(machine)
    assert found.level == "warn" and "2099-01-01" in found.detail and "signed" in found.detail
    (slot / "manifest.json").write_text("{")
    assert service.clock(machine).level == "ok"


def test_a_broker_that_listens_is_reached_and_an_unknown_name_is_told(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        there = Config(**{**vars(SETTINGS), "port": listener.getsockname()[1]})
        assert service.broker(a_machine(tmp_path, config=there)).level == "ok"
    nowhere = Config(**{**vars(SETTINGS), "host": "no-such-host.invalid"})
    found = service.broker(a_machine(tmp_path, config=nowhere))
    assert found.level == "fail" and "'no-such-host.invalid' is unknown here" in found.detail and "IP:1" in found.fix


def test_a_full_disk_is_seen(small_disk: Path, tmp_path: Path) -> None:
    found = room.disk(a_machine(tmp_path, state=small_disk))
    assert found.level == "fail" and "200 wanted" in found.detail and "apt-get clean" in found.fix


def test_a_disk_that_is_mounted_read_only_is_seen(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=30)
    found = room.disk(a_machine(tmp_path, state=small_disk))
    assert found.level == "fail" and "remount,rw" in found.fix


def test_intels_powersave_is_not_a_slow_clock(tmp_path: Path) -> None:
    files: dict[str, str | bytes | None] = {
        f"{CLOCK}/scaling_governor": "powersave",
        f"{CLOCK}/scaling_driver": "intel_pstate",
    }
    assert power.governor(a_machine(tmp_path, files)).level == "ok"


def test_the_kernels_first_cgroups_count_too(tmp_path: Path) -> None:
    table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t{}\n"
    files: dict[str, str | bytes | None] = {"sys/fs/cgroup/cgroup.controllers": None}
    for enabled, level in (("1", "ok"), ("0", "warn")):
        machine = a_machine(tmp_path / enabled, {**files, "proc/cgroups": table.format(enabled)}, state=tmp_path)
        assert room.memory_limits(machine).level == level


def test_what_onnxruntime_asks_of_the_system_is_read_from_its_own_library() -> None:
    assert max(wheel.needed(b"GLIBC_")) >= (2, 17) and max(wheel.needed(b"GLIBCXX_")) >= (3, 4, 9)
    assert wheel.alignment() in (0x1000, 0x4000, 0x10000, 0x200000)
    assert max(wheel.versions(Path(sys.executable).resolve(), b"GLIBC_")) >= (2, 17)


def test_large_pages_need_a_library_that_is_aligned_for_them(tmp_path: Path) -> None:
    aligned = wheel.alignment()
    assert aligned
    assert system.pages(a_machine(tmp_path, page_bytes=aligned)).level == "ok"
    found = system.pages(a_machine(tmp_path, page_bytes=aligned * 4))
    assert found.level == "fail" and "aligned for" in found.detail


@given(st.sets(st.integers(0, 300)))
def test_a_list_of_processors_is_counted_however_the_kernel_writes_it(numbers: set[int]) -> None:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    assert processors(text) == len(numbers)


LIST_LIKE = st.text(alphabet="0123456789-,²٣ \n")
FILES_OF = {
    "architecture": ["proc/cpuinfo", "proc/device-tree/model"],
    "cpu list": [f"{CPU}/possible", f"{CPU}/present"],
    "threads": [f"{CPU}/online"],
    "governor": [f"{CLOCK}/{name}" for name in ("scaling_governor", "scaling_max_freq", "cpuinfo_max_freq")],
    "power": [power.THROTTLED],
    "temperature": ["sys/class/thermal/thermal_zone0/temp"],
    "memory": ["proc/meminfo"],
    "swap": ["proc/meminfo"],
    "memory limits": ["sys/fs/cgroup/cgroup.controllers", "proc/cgroups"],
}
LINES = st.sampled_from(["MemTotal: ", "MemAvailable:", "SwapTotal: -1 kB", "memory\t", "CPU part\t:", "0x", " kB\n"])


@given(st.lists(LINES | LIST_LIKE | st.text(max_size=20)).map("".join))
def test_no_text_in_the_kernels_files_ends_the_doctor(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in FILES_OF.items():
            machine = a_machine(Path(folder), {path: text.encode(errors="replace") for path in paths})
            found = CHECKS[name](machine)
            assert (found.level == "ok") == (not found.fix), found


def a_program(folder: Path, script: str) -> dict[str, str]:
    """Return an environment in which `vcgencmd` is `script`."""
    folder.mkdir()
    (folder / "vcgencmd").write_text("#!/bin/sh\n" + script)
    (folder / "vcgencmd").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("script", "level", "says"),
    [
        ("echo throttled=0x0", "ok", "no under-voltage"),
        ("echo throttled=0x1", "fail", "now: under-voltage"),
        ("echo throttled=0x20000", "warn", "since boot: clock capped"),
        ("echo no such thing", "ok", "does not tell"),
        ("echo VCHI initialization failed >&2; exit 255", "warn", "may not ask the firmware: VCHI"),
    ],
)
def test_the_firmware_is_asked_where_the_kernel_has_no_file(script: str, level: str, says: str, tmp_path: Path) -> None:
    environ = a_program(tmp_path / "bin", script)
    found = power.power(a_machine(tmp_path, {power.THROTTLED: None}, environ=environ))
    assert (found.level, says in found.detail) == (level, True), found


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_folder_of_another_user_is_told_and_hides_nothing_else() -> None:
    code = (
        "import os, sys; from pathlib import Path; from edgeml_runtime.doctor import CHECKS, Machine;"
        "from edgeml_runtime.doctor.examine import ask; os.setuid(65534); machine = Machine(state=Path(sys.argv[1]));"
        "found = [ask(CHECKS[name], machine) for name in ('disk', 'python')];"
        "print(found[0].level, found[0].fix.split()[0], found[1].level)"
    )
    with tempfile.TemporaryDirectory() as folder:  # the tests' own folders are closed to others as a whole
        Path(folder).chmod(0o700)
        command = [sys.executable, "-c", code, str(Path(folder) / "state")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert done.stdout.split() == ["fail", "sudo", "ok"], done


def test_the_doctor_opens_nothing_that_could_kill_it() -> None:
    code = "import sys, edgeml_runtime.__main__; print({'onnxruntime', 'numpy', 'paho'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_this_machine_is_examined_for_real(tmp_path: Path) -> None:
    enroll(tmp_path, SETTINGS)
    found = {check.name: check for check in examine(tmp_path)}
    assert list(found) == list(CHECKS)
    bad = {name: check.finding for name, check in found.items() if not check.ok}
    assert bad.keys() == {"broker"}, bad
    assert "loads in a child process" in found["import"].finding.detail


def test_without_onnxruntime_the_doctor_says_what_to_install_and_the_agent_sends_to_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    command = [str(tmp_path / "bare/bin/python"), "-m", "edgeml_runtime"]
    done = subprocess.run(
        [*command, "doctor", "--json", "--state", str(tmp_path)], capture_output=True, text=True, env=environment
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert "not installed" in checks["onnxruntime"]["detail"] and wheel.REQUIREMENT in checks["onnxruntime"]["fix"]
    assert not checks["import"]["ok"] and checks["python"]["ok"]
    enroll(tmp_path, SETTINGS)
    done = subprocess.run([*command, "run", "--state", str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 4 and len(done.stderr.strip().splitlines()) == 1 and "doctor" in done.stderr
