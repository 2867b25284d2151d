"""Boards as data: what one can hold and run, every fact with its source.

devices/<board>.toml, and the user's own beside their calibrations -> DeviceProfile;  a device's report -> DeviceProfile
"""

from edgeml.devices.boards import (
    add_board,
    board_rows,
    devices_folder,
    find_board,
    own_boards,
    read_boards,
    shipped_boards,
)
from edgeml.devices.profile import DeviceProfile, parse_board, write_board
from edgeml.devices.reported import profile_of

__all__ = [
    "DeviceProfile",
    "add_board",
    "board_rows",
    "devices_folder",
    "find_board",
    "own_boards",
    "parse_board",
    "profile_of",
    "read_boards",
    "shipped_boards",
    "write_board",
]
