"""The command line: parse, call one library function, print.

Commands live in modules that are imported when they are called, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import importlib
import os

import click

from edgeml import __version__

COMMANDS = {  # name -> module of edgeml.cli, what it does
    "init": ("build", "Write NAME/edgeml.yaml, guessed from the data."),
    "build": ("build", "Data to a verified, registered release with its report."),
    "compile": ("build", "The same from a finished model."),
    "verify": ("examine", "Replay parity and accuracy of a bundle, print the verdict."),
    "predict": ("examine", "Run a bundle over data as a device would."),
    "bench": ("bench", "Measure a model here, predict it for boards; compare two."),
    "devices": ("boards", "Board profiles: list, show, add, calibrate."),
    "registry": ("releases", "Models and releases: list, show."),
    "report": ("releases", "The HTML report of a run."),
    "broker": ("fleet", "An MQTT broker for the lab."),
    "server": ("fleet", "The coordinator: rollouts, rounds, telemetry."),
    "deploy": ("fleet", "Start a rollout of a release."),
    "fleet": ("fleet", "Devices: what they run, how they feel."),
    "federate": ("federate", "Federated rounds that end in a verified release."),
    "demo": ("demo", "The whole loop on this machine."),
}


class EdgeML(click.Group):
    """Opens a command's module when it is called, and turns deliberate errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgeml.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("compile", "compile_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            code, line = _ending(error)
            if ctx.params["debug"] or code is None:
                raise
            click.echo(f"error: {line}", err=True)
            ctx.exit(code)


def _ending(error: Exception) -> tuple[int | None, str]:
    """Return the exit code and the line of a deliberate error or of a disk that refuses; None for a bug of ours."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return code, str(error)
    cause = getattr(error, "orig", error)  # SQLAlchemy wraps what SQLite said
    if isinstance(cause, OSError) and cause.errno is not None:
        where = f" ({cause.filename})" if cause.filename else ""
        hint = "; make room and run it again, nothing was half-written" if cause.errno == errno.ENOSPC else ""
        return 1, f"{cause.strerror}{where}{hint}"
    if "disk is full" in str(cause):
        return 1, f"{cause}: make room and run it again, nothing was half-written"
    return None, ""


@click.group(cls=EdgeML, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeml")
@click.option("--debug", is_flag=True, help="Show the stack trace of an error.")
def edgeml(debug: bool) -> None:
    """Machine learning that lives on small computers.

    Data to a trained model, to ONNX, quantized, proven per board, shipped over MQTT, learning on
    the devices, and back to a better, verified release.
    """


def main() -> None:
    """Run the command line; what the environment must say before onnxruntime starts is said here."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    edgeml(prog_name="edgeml")
