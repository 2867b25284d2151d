"""Gradients by torch's autograd in float64; run by a Python that has torch and nothing of edgeml.

torch_side.py FOLDER: NAME.json says operator, order, attributes; NAME.npz holds `in.<input>`, `const.<constant>` and
`seed`; writes NAME.torch.npz with the gradient of every input, or prints {NAME: why not}
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch_layers import OPERATORS


def gradients(path):
    case, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    inputs = {
        k[3:]: torch.tensor(arrays[k], dtype=torch.float64, requires_grad=True) for k in arrays.files if k[:3] == "in."
    }
    fixed = {}
    for key in arrays.files:
        if key.startswith("const."):
            array = torch.from_numpy(arrays[key])
            fixed[key[6:]] = array.double() if array.is_floating_point() else array
    named = inputs | fixed
    given = [named[name] if name else None for name in case["order"]]
    seed = torch.from_numpy(arrays["seed"])
    y = OPERATORS[case["operator"]](given, case["attributes"], list(seed.shape))
    if tuple(y.shape) != tuple(seed.shape):
        return f"shape {tuple(y.shape)}, expected {tuple(seed.shape)}"
    far = float((y.detach().double() - torch.from_numpy(arrays["y"])).abs().max()) if y.numel() else 0.0
    if far > 1e-4 * (1 + float(y.detach().abs().max())):
        return f"forwards it already differs by {far:.2g}"
    found = torch.autograd.grad(y, list(inputs.values()), seed.to(y.dtype), allow_unused=True)
    answers = {n: np.zeros(inputs[n].shape) if g is None else g.numpy() for n, g in zip(inputs, found, strict=True)}
    np.savez(path.with_suffix(".torch.npz"), **answers)
    return ""


def main():
    torch.set_num_threads(1)
    said = {}
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        try:
            said[path.stem] = gradients(path)
        except Exception as error:
            said[path.stem] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps({name: why for name, why in said.items() if why}))


if __name__ == "__main__":
    main()
