"""treelite, tl2cgen and m2cgen for ensembles: a checkpoint for treelite's interpreter, C code compiled by gcc."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import joblib

from benchmarks.peers.job import FOLDER, Result, info

COMPILER_S = 300  # that gcc may take
NAME = FOLDER.name


def treelite_model() -> Any:
    return importlib.import_module("treelite.sklearn").import_model(joblib.load(FOLDER / "source.joblib"))


def treelite(path: Path) -> None:
    treelite_model().serialize(path)


def tl2cgen(path: Path) -> None:
    importlib.import_module("tl2cgen").export_lib(treelite_model(), toolchain="gcc", libpath=path)


def m2cgen(path: Path) -> None:
    code = importlib.import_module("m2cgen").export_to_c(joblib.load(FOLDER / "source.joblib"))
    source = path.with_suffix(".c")
    source.write_text(code, encoding="utf-8")
    compiler = shutil.which("gcc") or "cc"
    command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(path), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILER_S)


if __name__ == "__main__":
    result = Result()
    result.make("treelite", "treelite", to=f"{NAME}.treelite", by=treelite)
    result.make("tl2cgen", "tl2cgen", to=f"{NAME}-tl2cgen.so", by=tl2cgen)
    result.make("m2cgen", "m2cgen", to=f"{NAME}-m2cgen-{info()['classes']}.so", by=m2cgen)
    result.tell()
