"""Small networks of torch as ONNX files, with torch's own float64 gradients of their inputs.

torch_exports.py FOLDER: run by a Python that has torch, onnx and onnxscript, nothing of edgeml. Writes NAME.onnx and
NAME.npz (`in.<input>`, `y`, `seed`, `d.<input>`) for every network and both exporters, or prints {NAME: why not}
"""

import copy
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NETS = {}


class Of(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs):
        return self.function(*self.parts, *inputs)


def net(name, *shapes):
    def register(make):
        NETS[name] = (make, shapes)
        return make

    return register


def chain(name, shape, *layers):
    NETS[name] = (lambda: nn.Sequential(*(layer() for layer in layers)), (shape,))


def of(name, function, *shapes, parts=()):
    NETS[name] = (lambda: Of(function, *(part() for part in parts)), shapes)


IMAGE, ROWS, STEPS = (2, 4, 9, 9), (3, 6), (2, 7, 6)
ACTIVATIONS = (
    "ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Tanh Sigmoid Softplus "
    "Softsign LogSigmoid Tanhshrink Softshrink Hardshrink"
)
chain("mlp", ROWS, lambda: nn.Linear(6, 8), nn.ReLU, lambda: nn.Linear(8, 3))
for _name in ACTIVATIONS.split():
    chain(f"act {_name}", ROWS, lambda: nn.Linear(6, 8), getattr(nn, _name), lambda: nn.Linear(8, 2))
chain("act GELU tanh", ROWS, lambda: nn.Linear(6, 8), lambda: nn.GELU("tanh"))
chain("act GLU", ROWS, lambda: nn.Linear(6, 8), nn.GLU)
chain("act Softmax", ROWS, lambda: nn.Linear(6, 8), lambda: nn.Softmax(-1), lambda: nn.Linear(8, 2))
chain("act LogSoftmax", ROWS, lambda: nn.Linear(6, 8), lambda: nn.LogSoftmax(-1))
chain("dropout in evaluation", ROWS, lambda: nn.Linear(6, 8), lambda: nn.Dropout(0.5), lambda: nn.Linear(8, 2))
chain(
    "cnn",
    IMAGE,
    lambda: nn.Conv2d(4, 6, 3, padding=1),
    nn.ReLU,
    lambda: nn.MaxPool2d(2),
    nn.Flatten,
    lambda: nn.Linear(96, 3),
)
chain(
    "cnn with norm",
    IMAGE,
    lambda: nn.Conv2d(4, 6, 3, stride=2),
    lambda: nn.BatchNorm2d(6),
    nn.ReLU,
    lambda: nn.AdaptiveAvgPool2d(1),
    nn.Flatten,
)
chain("depthwise", IMAGE, lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), lambda: nn.Conv2d(4, 8, 1), nn.Hardswish)
chain("transposed", IMAGE, lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), nn.Tanh)
chain("transposed in groups", IMAGE, lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2))
chain(
    "conv1d",
    (2, 4, 12),
    lambda: nn.Conv1d(4, 5, 3, dilation=2),
    nn.ReLU,
    lambda: nn.MaxPool1d(2),
    lambda: nn.AvgPool1d(2),
)
chain("conv3d", (1, 2, 5, 5, 5), lambda: nn.Conv3d(2, 3, 2), nn.ReLU, lambda: nn.AvgPool3d(2))
chain("average ceil", IMAGE, lambda: nn.AvgPool2d(2, ceil_mode=True))
chain("average padded", IMAGE, lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False))
chain("max ceil", IMAGE, lambda: nn.MaxPool2d(2, ceil_mode=True))
chain("adaptive max", IMAGE, lambda: nn.AdaptiveMaxPool2d(3))
chain("lp pool", IMAGE, lambda: nn.LPPool2d(2, 3))
chain("groupnorm", IMAGE, lambda: nn.GroupNorm(2, 4), nn.SiLU)
chain("instancenorm", IMAGE, lambda: nn.InstanceNorm2d(4, affine=True))
chain("layernorm", STEPS, lambda: nn.LayerNorm(6), lambda: nn.Linear(6, 4))
chain("rmsnorm", STEPS, lambda: nn.RMSNorm(6), lambda: nn.Linear(6, 4))
chain("local response", IMAGE, lambda: nn.LocalResponseNorm(3))
chain("upsample nearest", IMAGE, lambda: nn.Upsample(scale_factor=2))
chain("upsample bilinear", IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear"))
chain("upsample bilinear corners", IMAGE, lambda: nn.Upsample(size=(13, 12), mode="bilinear", align_corners=True))
chain("upsample bicubic", IMAGE, lambda: nn.Upsample(size=(12, 12), mode="bicubic"))
chain("pixel shuffle", IMAGE, lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2))
for _name in ("ReflectionPad2d", "ReplicationPad2d", "ZeroPad2d", "CircularPad2d"):
    chain(f"pad {_name}", IMAGE, lambda name=_name: getattr(nn, name)(2), lambda: nn.Conv2d(4, 2, 3))
chain("channel shuffle", IMAGE, lambda: nn.ChannelShuffle(2), lambda: nn.Conv2d(4, 2, 1))
chain("unfold", IMAGE, lambda: nn.Unfold(3), lambda: nn.Linear(49, 5))
chain("transformer", STEPS, lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True))
for _name in ("LSTM", "GRU", "RNN"):
    of(
        _name,
        lambda layer, x: layer(x)[0],
        STEPS,
        parts=(lambda name=_name: getattr(nn, name)(6, 4, batch_first=True),),
    )
    of(
        f"{_name} both ways, two layers",
        lambda layer, x: layer(x)[0],
        STEPS,
        parts=(lambda name=_name: getattr(nn, name)(6, 4, 2, batch_first=True, bidirectional=True),),
    )
    of(
        f"{_name}Cell",
        lambda cell, x: _cells(cell, x),
        STEPS,
        parts=(lambda name=_name: getattr(nn, name + "Cell")(6, 4),),
    )
of("attention", lambda m, x: m(x, x, x)[0], STEPS, parts=(lambda: nn.MultiheadAttention(6, 2, batch_first=True),))
of("scaled dot product", lambda q, k: F.scaled_dot_product_attention(q, k, k), (2, 2, 5, 4), (2, 2, 5, 4))
of(
    "scaled dot product, causal",
    lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
    (2, 2, 5, 4),
    (2, 2, 5, 4),
)
of("bilinear layer", lambda m, x, y: m(x, y), ROWS, ROWS, parts=(lambda: nn.Bilinear(6, 6, 3),))
of(
    "squeeze and excite",
    lambda a, b, x: x * torch.sigmoid(b(F.relu(a(x.mean((2, 3)))))[..., None, None]),
    IMAGE,
    parts=(lambda: nn.Linear(4, 2), lambda: nn.Linear(2, 4)),
)
of("residual", lambda a, x: F.relu(x + a(x)), IMAGE, parts=(lambda: nn.Conv2d(4, 4, 3, padding=1),))
of("einsum", lambda x, y: torch.einsum("bij,bkj->bik", x, y), STEPS, STEPS)
of("cumulated", lambda x: x.cumsum(-1), ROWS)
of("top", lambda x: x.topk(3, -1).values, ROWS)
of("sorted", lambda x: x.sort(-1).values, ROWS)
of("where", lambda x: torch.where(x > 0, x, 0.1 * x.exp()), ROWS)
of("masked", lambda x: x.masked_fill(x > 1, 0.5).tril(), (6, 6))
of("gathered", lambda x: x.gather(1, torch.tensor([[0, 2], [1, 1], [5, 0]])), ROWS)
of("indexed", lambda x: x[:, [0, 2, 2]], ROWS)
of("indexed twice", lambda x: x[torch.tensor([0, 2, 2]), torch.tensor([1, 1, 5])], ROWS)
of("scattered", lambda x: torch.zeros(3, 8).scatter_add(1, torch.tensor([[0, 2, 2, 4, 5, 7]] * 3), x), ROWS)
of("put", lambda x: torch.zeros(8, 6).index_put((torch.tensor([0, 3, 3]),), x, accumulate=True), ROWS)
of("selected", lambda x: x.index_select(1, torch.tensor([4, 4, 0])), ROWS)
of("rolled", lambda x: x.roll(2, 1).flip(0), ROWS)
of("sliced", lambda x: x[:, 1::2], ROWS)
of("split", lambda x: torch.cat([one * (i + 1) for i, one in enumerate(x.chunk(3, 1))], 0), ROWS)
of(
    "stacked",
    lambda x: torch.stack(x.unbind(1), 2).repeat(1, 1, 2) if x.dim() > 2 else torch.stack([x, x * x], 1),
    ROWS,
)
of(
    "norms",
    lambda x: torch.stack([x.norm(), x.norm(1), x.std(), x.var(), x.logsumexp((0, 1)), x.amax(), x.prod()]),
    ROWS,
)
of("normalized", lambda x: F.normalize(x, dim=-1), ROWS)
of("cosine", lambda x, y: F.cosine_similarity(x, y), ROWS, ROWS)
of("distances", lambda x, y: torch.cdist(x, y), ROWS, (4, 6))
of("powers", lambda x: (x.abs() + 0.1).pow(1.7) + x.abs().add(1).rsqrt() + x.square(), ROWS)
of("learned power", lambda x, y: (x.abs() + 0.1).pow(y), ROWS, ROWS)
of("angles", lambda x: torch.atan2(x, x.flip(1) + 3) + x.sin() * x.cos() + (0.3 * x).tan(), ROWS)
of("hyperbolic", lambda x: x.sinh() + x.cosh() + x.asinh() + (0.2 * x).atanh() + (0.2 * x).asin(), ROWS)
of("logs", lambda x: x.exp().log1p() + (x.abs() + 1).log2() + x.expm1() + torch.erf(x), ROWS)
of("rounded", lambda x: x * x.floor() + x.round() + x.sign() * x + torch.fmod(x, 0.7), ROWS)
of("extremes", lambda x, y: torch.maximum(x, y) * torch.minimum(x, y.flip(1)) + x.clamp(-0.5, 0.5), ROWS, ROWS)
of("spatial transformer", lambda x, y: F.grid_sample(x, y, align_corners=False), (1, 2, 5, 5), (1, 3, 3, 2))
of("matrix and vector", lambda x, y: (x @ y) * (y @ y), ROWS, (6,))
of("fold", lambda x: F.fold(x, (5, 5), (2, 2)), (1, 8, 16))
of("cross entropy", lambda x: F.cross_entropy(x, torch.tensor([0, 2, 5]), weight=torch.arange(1.0, 7.0)), ROWS)
of("smoothed cross entropy", lambda x: F.cross_entropy(x, torch.tensor([0, 2, 5]), label_smoothing=0.1), ROWS)
of("nll", lambda x: F.nll_loss(x.log_softmax(-1), torch.tensor([0, 2, 5])), ROWS)
of("binary", lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()), ROWS, ROWS)
of(
    "regressions",
    lambda x, y: F.mse_loss(x, y) + F.l1_loss(x, y) + F.huber_loss(x, y) + F.smooth_l1_loss(x, y),
    ROWS,
    ROWS,
)
of("divergence", lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"), ROWS, ROWS)
of("hinges", lambda x: F.multi_margin_loss(x, torch.tensor([0, 2, 5])) if False else F.relu(1 - x).mean(), ROWS)
of(
    "embedded",
    lambda table, x: table(torch.tensor([[0, 2], [2, 1]])).sum(1) @ x,
    (4, 3),
    parts=(lambda: nn.Embedding(5, 4),),
)


def _cells(cell, x):
    state = None
    for step in x.unbind(1):
        state = cell(step, state)
    return state[0] if isinstance(state, tuple) else state


def gradients(module, inputs):
    """Return the answer, its gradient, and the inputs' gradients, in float64."""
    wide = copy.deepcopy(module).double()
    given = [one.double().requires_grad_() for one in inputs]
    torch.set_default_dtype(torch.float64)
    try:
        y = wide(*given)
    finally:
        torch.set_default_dtype(torch.float32)
    seed = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(y.shape)).astype(np.float32))
    found = torch.autograd.grad(y, given, seed.double(), allow_unused=True)
    return y, seed, [torch.zeros_like(one) if grad is None else grad for one, grad in zip(given, found, strict=True)]


def export(name, exporter, folder):
    make, shapes = NETS[name]
    torch.manual_seed(0)
    module = make().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    names = [f"x{i}" for i in range(len(inputs))]
    y, seed, slopes = gradients(module, inputs)
    stem = folder / f"{exporter}.{name.replace(' ', '_').replace(',', '')}"
    options = (
        {"dynamo": True, "external_data": False, "verbose": False}
        if exporter == "dynamo"
        else {"dynamo": False, "opset_version": 17}
    )
    torch.onnx.export(module, inputs, f"{stem}.onnx", input_names=names, output_names=["y"], **options)
    arrays = {f"in.{n}": one.numpy() for n, one in zip(names, inputs, strict=True)}
    arrays |= {f"d.{n}": grad.numpy() for n, grad in zip(names, slopes, strict=True)}
    np.savez(f"{stem}.npz", y=y.detach().numpy(), seed=seed.numpy(), **arrays)


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    folder, said = Path(sys.argv[1]), {}
    for exporter in ("dynamo", "script"):
        for name in NETS:
            try:
                export(name, exporter, folder)
            except Exception as error:
                said[f"{exporter}.{name}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
