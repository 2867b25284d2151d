"""The command `edgeml-agent`: parse, call one function, print. Errors are one line; see `DeviceError.exit_code`.

A command opens the rooms it needs and no others: the doctor must live where importing onnxruntime kills the process,
and an agent that runs for months holds what it imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeml_runtime import __version__, config
from edgeml_runtime.config import Config
from edgeml_runtime.errors import AgentRefused, DeviceError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 ok, 1 fix it, 2 usage, 3 refused by a gate, 4 agent or broker."""
    options = _parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options)
    except DeviceError as error:
        print(f"edgeml-agent: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder of another user, a disk that is gone
        print(
            f"edgeml-agent: {error.filename or options.state}: {error.strerror}; check it, or --state", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _enroll(options: argparse.Namespace) -> int:
    host, _, port = options.broker.rpartition(":")
    if not host or not port.isdigit():
        raise AgentRefused(f"--broker {options.broker!r}: write HOST:PORT, for example 192.168.1.10:1883")
    accept = options.accept.split(",") if options.accept is not None else config.Policy().accept
    settings = Config(
        policy=config.Policy(accept=tuple(filter(None, accept))),
        device=options.id,
        host=host.strip("[]"),
        port=int(port),
        trusted=(_key(options.key),),
        board=options.board,
        http_port=options.http_port,
        telemetry_s=options.telemetry,
    )
    if config.is_locked(options.state):
        raise AgentRefused(f"an agent runs on {options.state}: stop it, then enroll")
    config.enroll(options.state, settings)
    print(f"enrolled {settings.device} in {options.state}; start it with: edgeml-agent run --state {options.state}")
    print(
        f"it takes part in {', '.join(settings.policy.accept) or 'no tasks'}; change that with edgeml-agent task-policy"
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    room, settings = _open("agent"), config.read_config(options.state)
    stem = _open("task_child").grown(options.state)  # before there is a thread, a key or a lock that it could inherit
    agent = room.Agent(options.state, settings, stem=stem)
    received: list[int] = []

    def end(number: int, _frame: Any) -> None:
        received.append(number)
        agent.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    agent.run()
    return INTERRUPTED if signal.SIGINT in received else 0


def _status(options: argparse.Namespace) -> int:
    told = _open("local").status(options.state)
    if options.json:
        _print_json(told)
        return 0
    where = "the running agent" if told["source"] == "agent" else "the disk (no agent runs)"
    running, job, broker = told["running"], told["job"], told["broker"]
    state = "connected" if broker["connected"] else "not connected"
    lines = {
        "device": f"{told['device']} ({told['board']}), from {where}",
        "model": f"{running['model']} {running['release']} {running['variant']}" if running else "none",
        "job": " ".join(filter(None, (job["job"], job["state"], job["step"], job["reason"], job["detail"])))
        if job
        else "none",
        "broker": f"{broker['host']}:{broker['port']} {state}",
        "samples": f"{told['samples']['stored']} stored, {told['samples']['labelled']} labelled",
    }
    if own := told.get("personal"):
        lines["personal"] = f"{'yes' if own['serves'] else 'no'}: {own['reason']}"
    if local_round := told.get("round"):
        lines["round"] = " ".join(filter(None, (local_round[key] for key in ("round", "phase", "reason"))))
    if told.get("conflict"):
        lines["conflict"] = told["conflict"]
    for name, text in lines.items():
        print(f"{name:9}{text}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    told = _open("local").predict(options.state, options.data)
    if options.json:
        _print_json(told)
        return 0
    for answer in told.get("labels") or told.get("predictions") or [told["outputs"]]:
        print(answer if isinstance(answer, str | float | int) else json.dumps(answer))
    return 0


def _task_policy(options: argparse.Namespace) -> int:
    owner, settings = _open("owner"), config.read_config(options.state)
    if options.set:
        settings = dataclasses.replace(settings, policy=owner.changed(settings.policy, options.set))
        config.enroll(options.state, settings)
    if options.forget:
        names = owner.forget(options.state, options.forget, most=settings.policy.max_kept_bytes)
        print(f"forgot what was kept of {', '.join(names) or 'no federation'}", file=sys.stderr)
    if options.json:
        _print_json(owner.told(options.state, settings))
        return 0
    for line in owner.lines(options.state, settings):
        print(line)
    if options.set and config.is_locked(options.state):
        print("an agent runs here: restart it to have the new policy followed", file=sys.stderr)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    checks = _open("doctor").examine(options.state)
    healthy = all(check.ok for check in checks)
    if options.json:
        _print_json({"ok": healthy, "checks": [check.to_plain() for check in checks]})
        return 0 if healthy else 1
    for check in checks:
        found = check.finding
        print(f"{found.level if check.ok else 'FAIL':5} {check.name:14} {found.detail}")
        if found.fix:
            print(f"{'':6}{'fix':14} {found.fix}")
    return 0 if healthy else 1


def _hardware(_options: argparse.Namespace) -> int:
    _print_json(_open("hardware").describe())
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "enroll": _enroll,
    "run": _run,
    "status": _status,
    "predict": _predict,
    "task-policy": _task_policy,
    "doctor": _doctor,
    "hardware": _hardware,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeml-agent", description="The edgeml agent: runs signed models on this device."
    )
    parser.add_argument("--version", action="version", version=f"edgeml-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--state", type=Path, default=config.default_state(), help="folder of this device (default: %(default)s)"
    )
    told = argparse.ArgumentParser(add_help=False, parents=[shared])
    told.add_argument("--json", action="store_true", help="one JSON document on stdout")
    enroll = commands.add_parser("enroll", parents=[shared], help="tell this device who it is and whom it trusts")
    enroll.add_argument("--id", required=True, help="1 to 64 characters of A-Z a-z 0-9 _ -")
    enroll.add_argument("--broker", required=True, metavar="HOST:PORT", help="the MQTT broker")
    enroll.add_argument(
        "--key", required=True, metavar="HEX|FILE", help="the server's public key, as `edgeml server` prints it"
    )
    enroll.add_argument("--board", required=True, help="board profile, for example raspberry-pi-4")
    enroll.add_argument("--http-port", type=int, default=0, help="local port; 0 takes a free one (default)")
    enroll.add_argument(
        "--telemetry", type=float, default=config.TELEMETRY_S, metavar="S", help="seconds between reports"
    )
    enroll.add_argument(
        "--accept", metavar="KINDS", help=f"of tasks, by commas; all by default: {','.join(config.Policy().accept)}"
    )
    run = commands.add_parser("run", parents=[shared], help="serve, and follow the server, until SIGTERM")
    run.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    commands.add_parser("status", parents=[told], help="what runs here, and what the last job came to")
    predict = commands.add_parser("predict", parents=[told], help="answers of the current model")
    predict.add_argument("data", metavar="DATA", help="a .csv or .json file, or - for standard input")
    policy = commands.add_parser("task-policy", parents=[told], help="what a server may ask of this device's rows")
    policy.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change it: accept=training,drift min_rows=50 clip_norm=1"
    )
    policy.add_argument(
        "--forget",
        metavar="RUN|MODEL",
        help="delete what a federation, or this device for a model of its own, keeps here; or all",
    )
    commands.add_parser(
        "hardware", parents=[shared], help="what this device is, as JSON: `edgeml devices add NAME --from` reads it"
    )
    commands.add_parser("doctor", parents=[told], help="check everything this device needs")
    return parser


def _open(room: str) -> Any:
    """Return the module `room` with the packages it needs; raise AgentRefused where one is missing."""
    try:
        return importlib.import_module(f"edgeml_runtime.{room}")
    except ImportError as error:
        if error.name is not None and error.name.startswith("edgeml_runtime"):
            raise  # a bug of ours, not an installation
        raise AgentRefused(f"{error}; `edgeml-agent doctor` says what to install") from error


def _key(given: str) -> str:
    """Return the key itself, or the one in the file that is named."""
    if Path(given).is_file():
        given = Path(given).read_text(encoding="utf-8", errors="replace")
    return given.strip().lower()


def _print_json(told: dict[str, Any]) -> None:
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    sys.exit(main())
