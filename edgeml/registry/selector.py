"""Which devices a rollout goes to: `all`, `board:NAME`, or ids with commas between them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from edgeml.errors import FleetError, NotFound

SHOWN = 8  # devices an error message lists


def select(text: str, boards: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids that `text` selects among the known devices, `boards` mapping each to its board.

    Raises FleetError when that is nobody, and NotFound for an id that is not known.

    >>> select("board:raspberry-pi-4", {"a": "raspberry-pi-4", "b": "raspberry-pi-5"})
    ('a',)
    """
    if text == "all":
        found = sorted(boards)
    elif text.startswith("board:"):
        found = sorted(device for device, board in boards.items() if board == text.removeprefix("board:"))
    else:
        found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if unknown := [device for device in found if device not in boards]:
            near = difflib.get_close_matches(unknown[0], boards, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise NotFound(f"no device {unknown[0]!r}; {hint}{_known(boards)}")
    if not found:
        raise FleetError(f"{text!r} is nobody: {_known(boards)}")
    return tuple(found)


def _known(boards: Mapping[str, str]) -> str:
    if not boards:
        return "no device has reported to this registry's server yet; start one with `edgeml-agent run`"
    names = [f"{device} ({board or 'board unknown'})" for device, board in sorted(boards.items())]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"known devices: {', '.join(names[:SHOWN])}{more}"
