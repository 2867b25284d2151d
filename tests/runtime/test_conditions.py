"""What the machine was doing while something was timed, and which of it spoils the timing."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.measure import (
    Conditions,
    conditions,
    environment,
    hardware,
    refuse_architecture,
)
from edgeml_runtime.measure.doubts import Evidence, doubts

QUIET = {"running_others": 0.0, "steal": 0.0, "swapped_pages": 0, "throttled": 0}


@pytest.mark.parametrize(
    ("median", "change", "why"),
    [
        ((1.0, 0.99, 1.01), {}, ""),
        ((1.0, 0.99, 1.01), {"running_others": 4.0}, ""),
        (
            (1.0, 0.99, 1.01),
            {"running_others": 12.0},
            "3.0 other tasks per core want to run (at most 1): quieten the machine",
        ),
        (
            (1.0, 0.99, 1.01),
            {"throttled": 0x5},
            "throttled (get_throttled 0x5: under-voltage, throttled): check power supply and cooling",
        ),
        ((1.0, 0.99, 1.01), {"throttled": 0x50000}, ""),  # once since boot, not now
        (
            (1.0, 0.99, 1.01),
            {"steal": 0.2},
            "the hypervisor took 20% of the processors (at most 5%): take a quieter host",
        ),
        ((1.0, 0.99, 1.01), {"swapped_pages": 999}, "999 pages were swapped (at most 256): free some memory"),
        ((1.0, 0.99, 1.01), {"frequency_khz_min": 1_790_000, "frequency_khz_max": 1_800_000}, ""),
        (
            (1.0, 0.99, 1.01),
            {"frequency_khz_min": 600_000, "frequency_khz_max": 1_800_000},
            "the clock moved between 600 and 1800 MHz: fix the governor (performance), cool it",
        ),
        ((1.0, 0.8, 1.1), {}, "the median's interval is 30% of it (at most 20%): measure for longer"),
    ],
)
def test_what_spoils_a_measurement_is_named(
    median: tuple[float, float, float], change: dict[str, float], why: str
) -> None:
    assert doubts(Evidence(median=median, facts=QUIET | change, cores=4)) == why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"held": 0.5}, "the processor was taken away for 50% of the time (at most 10%): quieten the machine"),
        (
            {"interrupted": 0.3},
            "others took the processor during 30% of the queries (at most 10%): quieten the machine",
        ),
        ({"late": 0.3}, "30% of the queries had to wait for the one before: ask less often, or for less"),
        ({"settled": False}, "still getting faster or slower after the longest warm-up: warm up for longer"),
    ],
)
def test_what_the_run_itself_showed_spoils_it_too(change: dict[str, Any], why: str) -> None:
    assert doubts(Evidence(median=(1.0, 0.99, 1.01), facts=QUIET, cores=4, **change)) == why


def test_several_doubts_are_all_said() -> None:
    why = doubts(Evidence(median=(1.0, 0.5, 1.5), facts={"throttled": 1}, cores=1))
    assert why.count(";") == 1 and "under-voltage" in why and "interval" in why


def test_the_environment_is_what_the_machine_says() -> None:
    facts = environment()
    assert facts["affinity"] == sorted(os.sched_getaffinity(0))
    assert facts["cores"] == os.cpu_count()
    assert facts["running"] >= 1
    assert None not in facts.values()
    assert ("governor" in facts) is Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").exists()


def test_throttling_is_asked_of_the_firmware_where_there_is_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert environment()["throttled"] == 0x50005
    program.write_text("#!/bin/sh\nexit 1\n")
    assert "throttled" not in environment()


def test_the_hardware_is_described_in_words() -> None:
    facts = hardware()
    assert all(isinstance(value, str) and value for value in facts.values())
    assert int(facts["memory_bytes"]) > 64 << 20
    assert {"machine", "kernel", "cores"} <= facts.keys()


@pytest.mark.parametrize("machine", ["armv7l", "armv6l", "armhf"])
def test_32_bit_arm_is_refused_in_one_sentence(machine: str) -> None:
    with pytest.raises(AgentRefused, match=f"{machine} is 32-bit .*install a 64-bit system"):
        refuse_architecture(machine)


@pytest.mark.parametrize("machine", ["aarch64", "x86_64", ""])
def test_64_bit_machines_are_taken(machine: str) -> None:
    refuse_architecture(machine)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is read in place of /sys."""
    for name in ("CPU", "FIRMWARE", "RAPL", "METERS", "THERMAL"):
        monkeypatch.setattr(conditions, name, tmp_path / getattr(conditions, name).relative_to("/sys"))
    return tmp_path


def test_energy_is_read_where_there_is_a_counter_or_a_meter(board: Path) -> None:
    watched = Conditions()
    assert watched.joules() is None
    counter = board / "class/powercap/intel-rapl:0/energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000000\n")
    watched = Conditions()
    watched.look()
    counter.write_text("3500000\n")
    watched.look()
    assert watched.joules() == pytest.approx(2.5)
    counter.write_text("12\n")  # wrapped around
    watched.look()
    assert watched.joules() is None


def test_a_meter_on_the_board_gives_power_times_time(board: Path) -> None:
    power = board / "class/hwmon/hwmon3/power1_input"
    power.parent.mkdir(parents=True)
    power.write_text("4200000\n")
    watched = Conditions()
    watched.look()
    time.sleep(0.05)
    watched.look()
    seconds = watched.readings[-1].at_s - watched.readings[1].at_s
    assert watched.joules() == pytest.approx(4.2 * seconds)


def test_clock_and_firmware_bits_are_watched_along_the_run(board: Path) -> None:
    for core in os.sched_getaffinity(0):
        (board / f"devices/system/cpu/cpu{core}/cpufreq").mkdir(parents=True)
    clock = board / f"devices/system/cpu/cpu{max(os.sched_getaffinity(0))}/cpufreq/scaling_cur_freq"
    bits = board / "devices/platform/soc/soc:firmware/get_throttled"
    bits.parent.mkdir(parents=True)
    bits.write_text("0\n")
    clock.write_text("600000\n")  # asleep, before the run
    watched = Conditions()
    for khz, throttled in ((1_800_000, "0"), (1_800_000, "2"), (1_200_000, "50006")):
        clock.write_text(f"{khz}\n")
        bits.write_text(throttled)
        watched.look()
    facts = watched.facts()
    assert (facts["frequency_khz_min"], facts["frequency_khz_max"]) == (1_200_000, 1_800_000)
    assert facts["throttled"] == 0x50007  # bit 16 came up meanwhile: so did bit 0
    assert [reading.get("throttled") for reading in watched.series()] == [0, 0, 2, 0x50006]


def test_throttling_between_two_looks_shows_in_the_history(board: Path) -> None:
    """The bits of now are gone again when somebody looks; those of the history stay."""
    bits = board / "devices/platform/soc/soc:firmware/get_throttled"
    bits.parent.mkdir(parents=True)
    bits.write_text("10000\n")  # too little voltage, once, long ago
    watched = Conditions()
    bits.write_text("50000\n")
    watched.end()
    throttled = watched.facts()["throttled"]
    assert throttled & 0xF == 0b0100
    assert "throttled" in doubts(Evidence(median=(1.0, 0.99, 1.01), facts={"throttled": throttled}, cores=4))


def test_a_firmware_that_only_answers_a_program_is_asked_before_and_after(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\necho asked >> "$0.log"; echo throttled=0x2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watched = Conditions()
    for _ in range(5):
        watched.look()
    watched.end()
    assert (tmp_path / "vcgencmd.log").read_text().split() == ["asked", "asked"]
    assert watched.facts()["throttled"] == 2


def test_a_voltage_alarm_the_hottest_zone_and_every_governor_are_read(board: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for name, text in {
        "class/hwmon/hwmon1/in0_lcrit_alarm": "1",
        "class/thermal/thermal_zone0/temp": "41000",
        "class/thermal/thermal_zone3/temp": "78500",
        f"devices/system/cpu/cpu{cores[0]}/cpufreq/scaling_governor": "performance",
        f"devices/system/cpu/cpu{cores[-1]}/cpufreq/scaling_governor": "powersave",
    }.items():
        (board / name).parent.mkdir(parents=True, exist_ok=True)
        (board / name).write_text(text + "\n")
    facts = Conditions().facts()
    assert facts["throttled"] == 1 and facts["temperature_c_max"] == 78.5
    assert facts["governor"] == ("performance, powersave" if len(cores) > 1 else "powersave")


def test_a_clock_that_is_set_meanwhile_is_noticed_and_spoils_nothing() -> None:
    watched = Conditions()
    watched.look()
    last = watched.readings[-1]
    watched.readings[-1] = replace(last, wall_s=last.wall_s - 7200)
    facts = watched.facts()
    assert facts["clock_jump_s"] == pytest.approx(-7200, abs=1)
    assert doubts(Evidence(median=(1.0, 0.99, 1.01), facts={**QUIET, "clock_jump_s": -7200.0}, cores=4)) == ""


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    folder = Path(conditions.__file__).parent
    lines = [
        f"{path.name}: {line.strip()}"
        for path in (*folder.glob("*.py"), folder.parent / "first_answer.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btime\.time\(|time\.time_ns|datetime|CLOCK_REALTIME", line.partition("#")[0])
    ]
    assert lines == ["conditions.py: wall_s=time.time(),"]


def test_waiting_for_a_processor_is_counted_by_the_kernel() -> None:
    before = conditions.kept_waiting()
    assert before is not None
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    after = conditions.kept_waiting()
    assert after is not None and after[0] - before[0] >= 10_000_000 and after[1] >= before[1]
