"""Memory that loading a model touched and serving it does not need, given back to the system.

Most resident pages of an idle agent are code of onnxruntime and cryptography that ran once, while a
graph was loaded or a signature checked. They are unchanged copies of files, so the kernel may forget
them at no cost and reads again those that are still wanted.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

MADV_DONTNEED = 4  # of a private file mapping: pages come back from the file when touched


def give_back() -> None:
    """Free unused heap, and forget every page of program code; the pages that serving runs return by themselves."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(ctypes.c_size_t(0))
    for start, end in _code():
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _code() -> list[tuple[int, int]]:
    """Return the address ranges of files mapped to be executed and not written, whose pages equal the file's."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16)))
    return [pair for pair in found if not pair[0] % mmap.PAGESIZE]
