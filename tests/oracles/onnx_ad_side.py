"""Gradients by onnx-ad, as graphs; run by a Python that has it and nothing of edgeml.

onnx_ad_side.py FOLDER: writes NAME.adjoint for every NAME.onnx, or prints {NAME: why not}
"""

import json
import sys
from pathlib import Path

import onnx
import onnx_ad


def main():
    said = {}
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        try:
            model = onnx.shape_inference.infer_shapes(onnx.load(path))
            made = onnx_ad.reverse(model, layout="onnx")
            path.with_suffix(".adjoint").write_bytes(made.SerializeToString())
        except Exception as error:
            said[path.stem] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
