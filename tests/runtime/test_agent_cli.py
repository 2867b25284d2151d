"""`edgeml-agent` as people and programs type it: exit codes, one-line errors, output."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml_runtime import __version__, doctor
from edgeml_runtime.notify import notify
from edgeml_runtime.wire import signed
from tests.runtime.agent_kit import AgentProcess, Mosquitto, needs_mosquitto, server_at
from tests.runtime.releases import KEY, a_release

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    """Return an enrolled agent, not running, whose current slot holds release `one`."""
    with AgentProcess(tmp_path, broker.port) as process, server_at(broker.port) as server:
        process.start()
        server.assign("pi-1", a_release("one"), job="j1", seq=1)
        assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"
        process.stop()
        yield process


def a_csv(folder: Path, *, header: bool = True) -> Path:
    path = folder / "rows.csv"
    lines = [",".join(f"p{i}" for i in range(64))] if header else []
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in ROWS.tolist())]) + "\n")
    return path


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeml_runtime", *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_version_and_the_help_are_there() -> None:
    assert run("--version").stdout.strip() == f"edgeml-agent {__version__}"
    for verb in ("enroll", "run", "status", "predict", "doctor", "task-policy"):
        done = run(verb, "--help")
        assert done.returncode == 0 and "--state" in done.stdout
    assert run("fly").returncode == 2


def test_predictions_are_the_same_from_the_disk_and_from_the_running_agent(agent: AgentProcess, tmp_path: Path) -> None:
    path = str(a_csv(tmp_path))
    from_disk = json.loads(agent.command("predict", path, "--json").stdout)
    agent.start()
    from_agent = json.loads(agent.command("predict", path, "--json").stdout)
    assert (from_disk.pop("source"), from_agent.pop("source")) == ("disk", "agent")
    assert from_disk["labels"] == from_agent["labels"] == agent.predict(ROWS)["labels"]
    np.testing.assert_allclose(from_disk["probabilities"], from_agent["probabilities"], rtol=1e-5)
    assert agent.command("predict", path).stdout.split() == from_disk["labels"]


def test_rows_come_from_csv_without_header_from_json_and_from_standard_input(
    agent: AgentProcess, tmp_path: Path
) -> None:
    wanted = agent.command("predict", str(a_csv(tmp_path))).stdout
    assert len(wanted.split()) == 3
    assert agent.command("predict", str(a_csv(tmp_path, header=False))).stdout == wanted
    (tmp_path / "rows.json").write_text(json.dumps({"rows": ROWS.tolist()}))
    assert agent.command("predict", str(tmp_path / "rows.json")).stdout == wanted
    assert agent.command("predict", "-", stdin=a_csv(tmp_path).read_text()).stdout == wanted
    many = json.dumps(np.tile(ROWS, (400, 1)).tolist())
    agent.start()
    assert agent.command("predict", "-", stdin=many).stdout == wanted * 400


@pytest.mark.parametrize("running", [False, True])
def test_a_wrong_row_is_one_line_with_row_column_and_value(agent: AgentProcess, tmp_path: Path, running: bool) -> None:
    if running:
        agent.start()
    for text, why in {
        "1,2,3\n": "row 1 has 3 values, the model takes 64: p0, p1",
        ",".join(["0"] * 63 + ["high"]) + "\n": "row 1, column 'p63': 'high' is not a number",
        "": "holds no rows",
    }.items():
        (tmp_path / "wrong.csv").write_text(text)
        done = agent.command("predict", str(tmp_path / "wrong.csv"))
        assert done.returncode == 1 and why in one_line(done)


def test_a_file_that_is_not_there_and_a_device_without_a_model_say_so(tmp_path: Path, broker: Mosquitto) -> None:
    fresh = AgentProcess(tmp_path, broker.port, device="pi-9")
    done = fresh.command("predict", str(a_csv(tmp_path)))
    assert done.returncode == 3 and "no model is installed" in one_line(done)
    with fresh.start():
        done = fresh.command("status")
        assert done.returncode == 0 and "model    none" in done.stdout


def test_the_status_says_where_it_comes_from(agent: AgentProcess) -> None:
    told = json.loads(agent.command("status", "--json").stdout)
    assert told["source"] == "disk" and told["running"]["release"] == "one" and told["job"]["state"] == "SUCCEEDED"
    assert "no agent runs" in agent.command("status").stdout
    agent.start()
    told = json.loads(agent.command("status", "--json").stdout)
    assert told["source"] == "agent" and told["running"]["release"] == "one" and told["rss_bytes"] > 0
    agent.kill()
    assert json.loads(agent.command("status", "--json").stdout)["source"] == "disk"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_agent_ends_cleanly(agent: AgentProcess, number: int, code: int) -> None:
    agent.start()
    assert agent.stop(number) == code
    assert "Traceback" not in agent.said()


def test_a_device_that_was_not_enrolled_says_how(tmp_path: Path) -> None:
    for verb in ("run", "status", "predict"):
        done = run(verb, "--state", str(tmp_path / "none"), *(["x.csv"] if verb == "predict" else []))
        assert done.returncode == 4 and "edgeml-agent enroll" in one_line(done)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"--id": "pi 1"}, "device id 'pi 1'"),
        ({"--broker": "localhost"}, "write HOST:PORT"),
        ({"--broker": "localhost:99999"}, "use 1 to 65535"),
        ({"--key": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_a_wrong_enrolment_is_refused_and_leaves_nothing(tmp_path: Path, changes: dict[str, str], why: str) -> None:
    given = {"--id": "pi-1", "--broker": "h:1883", "--key": signed.public_hex(KEY), "--board": "b", **changes}
    done = run("enroll", "--state", str(tmp_path / "s"), *(word for pair in given.items() for word in pair))
    assert done.returncode in (1, 4) and why in one_line(done)
    assert not (tmp_path / "s").exists()


def test_the_key_may_be_a_file_and_a_running_device_is_not_enrolled_over(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(signed.public_hex(KEY).upper() + "\n")
    words = ("--id", "pi-1", "--broker", "h:1", "--key", str(tmp_path / "key"), "--board", "b")
    assert run("enroll", "--state", str(tmp_path / "s"), *words).returncode == 0
    assert json.loads((tmp_path / "s/agent.json").read_text())["trusted"] == [signed.public_hex(KEY)]
    agent.start()
    done = agent.command("enroll", *words)
    assert done.returncode == 4 and "an agent runs" in one_line(done)


def test_a_state_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("--id", "pi-1", "--broker", "h:1", "--key", signed.public_hex(KEY), "--board", "b")
    done = run("enroll", "--state", str(tmp_path / "file/state"), *words)
    assert done.returncode in (1, 4) and str(tmp_path / "file") in one_line(done)


def test_a_damaged_configuration_names_its_file(agent: AgentProcess) -> None:
    (agent.state / "agent.json").write_text('{"device": "pi-1", "colour": "red"}')
    done = agent.command("run")
    assert done.returncode == 4 and "agent.json" in done.stderr and "'colour'" in one_line(done)


def test_an_http_port_that_is_taken_is_one_line(agent: AgentProcess, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = str(listener.getsockname()[1])
        words = (
            "--id",
            "pi-1",
            "--broker",
            "h:1",
            "--key",
            signed.public_hex(KEY),
            "--board",
            "b",
            "--http-port",
            taken,
        )
        agent.command("enroll", *words)
        done = agent.command("run")
        assert done.returncode == 4 and f"HTTP port {taken}" in one_line(done)


def test_the_doctor_finds_a_healthy_device_and_a_missing_broker(agent: AgentProcess, broker: Mosquitto) -> None:
    done = agent.command("doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["ok"], told
    assert [check["name"] for check in told["checks"]] == list(doctor.CHECKS)
    broker.kill()
    done = agent.command("doctor")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "does not answer" in failed[0]


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert not notify("READY=1")
    address = str(tmp_path / "socket") if kind == "path" else f"@edgeml-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1") and listener.recv(100) == b"READY=1"


def test_a_service_manager_hears_that_the_agent_is_ready_alive_and_stopping(
    agent: AgentProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        agent.start()
        assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        agent.stop()
        heard = {listener.recv(100)}
        while b"STOPPING=1" not in heard:
            heard.add(listener.recv(100))


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = (ROOT / "runtime/edgeml-agent.service").read_text()
    assert "Type=notify" in unit and "ORT_DISABLE_TELEMETRY=1" in unit and "OPENBLAS_NUM_THREADS=1" in unit
    verifier = Path("/usr/bin/systemd-analyze")
    if not verifier.exists():
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / "edgeml-agent.service"
    lines = [f"ExecStart={sys.executable}" if line.startswith("ExecStart=") else line for line in unit.splitlines()]
    copy.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [verifier, "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )
    about_us = [line for line in done.stderr.splitlines() if "edgeml-agent" in line]
    assert done.returncode == 0 and about_us == [], done.stderr
    score = [verifier, "security", "--offline=true", "--threshold=20", copy]  # tenths: at most 2.0 of 10
    done = subprocess.run(score, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-300:]
