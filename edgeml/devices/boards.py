"""The boards there are: those that ship with edgeml, and the user's own, found by name."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from edgeml.devices.profile import DeviceProfile, parse_board, write_board
from edgeml.errors import NotFound, ProjectError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def devices_folder() -> Path:
    """Return where the user's own boards and calibrations lie: EDGEML_DEVICES, else below XDG_CONFIG_HOME."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("EDGEML_DEVICES") or config / "edgeml" / "devices")


@functools.cache
def shipped_boards() -> Mapping[str, DeviceProfile]:
    """Return every board that ships with edgeml, by name."""
    files = sorted(resources.files("devices").iterdir(), key=lambda file: file.name)
    names = [(file, file.name.removesuffix(".toml")) for file in files if file.name.endswith(".toml")]
    return {name: parse_board(file.read_text(encoding="utf-8"), name=name) for file, name in names}


def own_boards() -> dict[str, DeviceProfile]:
    """Return the user's own boards, by name; raise ProjectError naming the file that is none."""
    return {path.stem: _read_own(path) for path in sorted(devices_folder().glob("*.toml"))}


def read_boards() -> dict[str, DeviceProfile]:
    """Return every board that is known here, by name."""
    return {**shipped_boards(), **own_boards()}


def board_rows() -> list[dict[str, Any]]:
    """Return every board as plain values, `own` telling the user's from those that ship."""
    shipped = [board.to_plain() | {"own": False} for board in shipped_boards().values()]
    return shipped + [board.to_plain() | {"own": True} for board in own_boards().values()]


def find_board(name: str) -> DeviceProfile:
    """Return the board called `name`; raise NotFound naming the nearest one."""
    if name in shipped_boards():
        return shipped_boards()[name]
    path = devices_folder() / f"{name}.toml"
    if NAME.fullmatch(name) and path.exists():
        return _read_own(path)
    boards = read_boards()
    near = difflib.get_close_matches(name, boards, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else "choose one of those, or `edgeml devices add` it"
    )
    raise NotFound(f"no board {name!r} among {', '.join(boards)}; {hint}")


def add_board(board: DeviceProfile, *, force: bool = False) -> Path:
    """Keep `board` among the user's own and return its file; raise ProjectError where the name is taken."""
    if not NAME.fullmatch(board.name):
        raise ProjectError(f"board {board.name!r}: a name has 1 to 64 of a-z, 0-9 and -, and begins with none of the -")
    if board.name in shipped_boards():
        raise ProjectError(f"board {board.name!r} ships with edgeml: give yours another name, like {board.name}-lab")
    path = devices_folder() / f"{board.name}.toml"
    if path.exists() and not force:
        raise ProjectError(f"board {board.name!r} is there already, in {path}: use another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(write_board(board), encoding="utf-8")
    fresh.replace(path)
    return path


def _read_own(path: Path) -> DeviceProfile:
    if path.stem in shipped_boards():
        raise ProjectError(f"{path}: a board of that name ships with edgeml; rename the file")
    try:
        return parse_board(path.read_text(encoding="utf-8"), name=path.stem)
    except (OSError, UnicodeDecodeError, ProjectError) as error:
        raise ProjectError(f"{path}: {error}; correct the file or remove it") from error
