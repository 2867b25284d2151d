"""treelite, tl2cgen and m2cgen for ensembles: a checkpoint for treelite's interpreter, C code compiled by gcc."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib

from benchmarks.peers.job import FOLDER, Result, info

COMPILER_S = 300  # that gcc may take
NAME = FOLDER.name


def treelite_model() -> Any:
    frontend = importlib.import_module("treelite.frontend")
    if (FOLDER / "source.txt").exists():
        return frontend.load_lightgbm_model(FOLDER / "source.txt")
    if (FOLDER / "source.json").exists():
        return frontend.load_xgboost_model(FOLDER / "source.json", format_choice="use_suffix")
    return importlib.import_module("treelite.sklearn").import_model(joblib.load(FOLDER / "source.joblib"))


def treelite(path: Path) -> None:
    treelite_model().serialize(path)


def tl2cgen(path: Path) -> None:
    how = {"parallel_comp": 16}  # sixteen files: gcc's time grows faster than a file does
    importlib.import_module("tl2cgen").export_lib(treelite_model(), toolchain="gcc", libpath=path, params=how)


def m2cgen(path: Path) -> None:
    code = importlib.import_module("m2cgen").export_to_c(joblib.load(FOLDER / "source.joblib"))
    source = path.with_suffix(".c")
    source.write_text(code, encoding="utf-8")
    compiler = shutil.which("gcc") or "cc"
    command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(path), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILER_S)


if __name__ == "__main__":
    result, chosen = Result(), sys.argv[2:]
    files = {
        "treelite": f"{NAME}.treelite",
        "tl2cgen": f"{NAME}-tl2cgen.so",
        "m2cgen": f"{NAME}-m2cgen-{info()['classes']}.so",
    }
    for peer, make in {"treelite": treelite, "tl2cgen": tl2cgen, "m2cgen": m2cgen}.items():
        if not chosen or peer in chosen:
            result.make(peer, peer, to=files[peer], by=make)
    result.tell()
