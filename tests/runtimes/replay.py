"""Run every model of a folder with this Python's own onnxruntime; needs nothing of edgeml.

replay.py FOLDER: for each NAME.onnx, NAME.npz holds `in.<input>` and `out.<output>`; prints {NAME: distance or error}
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def distance(path):
    arrays = np.load(path.with_suffix(".npz"))
    feeds = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for name, found in zip(names, session.run(names, feeds), strict=True):
        wanted = arrays["out." + name]
        if found.shape != wanted.shape:
            return f"shape {found.shape}, expected {wanted.shape}"
        if wanted.dtype.kind == "f":
            off = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(off / max(float(np.abs(wanted).max(initial=0.0)), 1e-3)))
        else:
            worst = max(worst, float(np.mean(found != wanted)))
    return worst


def main():
    found = {}
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        try:
            found[path.stem] = distance(path)
        except Exception as error:
            found[path.stem] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps({"version": onnxruntime.__version__, "found": found}))


if __name__ == "__main__":
    main()
