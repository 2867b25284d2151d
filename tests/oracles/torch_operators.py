"""ONNX operators written in torch from their specification, for its float64 autograd; knows nothing of edgeml.

An entry takes the inputs in the operator's order (None where one is left out), the attributes and the shape of the
answer, and returns the first output.
"""

import numpy as np
import torch
import torch.nn.functional as F

OPERATORS = {}


class NoOpinion(Exception):
    """What torch computes otherwise than ONNX defines it."""


def operator(*names):
    def register(function):
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def unary(**functions):
    for name, function in functions.items():
        OPERATORS[name] = lambda a, o, shape, f=function: f(a[0])


unary(
    Neg=torch.neg,
    Abs=torch.abs,
    Relu=torch.relu,
    Tanh=torch.tanh,
    Sigmoid=torch.sigmoid,
    Softplus=lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0),
    Exp=torch.exp,
    Log=torch.log,
    Sqrt=torch.sqrt,
    Identity=lambda x: x * 1,
    Reciprocal=torch.reciprocal,
    Erf=torch.erf,
    Sin=torch.sin,
    Cos=torch.cos,
    Tan=torch.tan,
    Asin=torch.asin,
    Acos=torch.acos,
    Atan=torch.atan,
    Sinh=torch.sinh,
    Cosh=torch.cosh,
    Asinh=torch.asinh,
    Acosh=torch.acosh,
    Atanh=torch.atanh,
    Softsign=F.softsign,
    HardSwish=F.hardswish,
    Mish=F.mish,
    GlobalAveragePool=lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True),
    GlobalMaxPool=lambda x: x.amax(dim=tuple(range(2, x.dim())), keepdim=True),
    Dropout=lambda x: x * 1,
)
OPERATORS |= {
    "Add": lambda a, o, s: a[0] + a[1],
    "Sub": lambda a, o, s: a[0] - a[1],
    "Mul": lambda a, o, s: a[0] * a[1],
    "Div": lambda a, o, s: a[0] / a[1],
    "Pow": lambda a, o, s: torch.pow(a[0], a[1]),
    "Mod": lambda a, o, s: torch.fmod(a[0], a[1]),
    "MatMul": lambda a, o, s: torch.matmul(a[0], a[1]),
    "Sum": lambda a, o, s: sum(a[1:], a[0] * 1),
    "Mean": lambda a, o, s: sum(a[1:], a[0]) / len(a),
    "Where": lambda a, o, s: torch.where(a[0], a[1], a[2]),
    "CastLike": lambda a, o, s: a[0].to(a[1].dtype),
    "Cast": lambda a, o, s: a[0].to({1: torch.float32, 11: torch.float64}[o["to"]]),
    "LeakyRelu": lambda a, o, s: F.leaky_relu(a[0], o.get("alpha", 0.01)),
    "Elu": lambda a, o, s: F.elu(a[0], o.get("alpha", 1.0)),
    "Celu": lambda a, o, s: F.celu(a[0], o.get("alpha", 1.0)),
    "ThresholdedRelu": lambda a, o, s: F.threshold(a[0], o.get("alpha", 1.0), 0.0),
    "HardSigmoid": lambda a, o, s: (o.get("alpha", 0.2) * a[0] + o.get("beta", 0.5)).clamp(0, 1),
    "Gelu": lambda a, o, s: F.gelu(a[0], approximate=o.get("approximate", "none")),
    "PRelu": lambda a, o, s: torch.where(a[0] > 0, a[0], a[1] * a[0]),
    "Softmax": lambda a, o, s: torch.softmax(a[0], o.get("axis", -1)),
    "LogSoftmax": lambda a, o, s: torch.log_softmax(a[0], o.get("axis", -1)),
    "Transpose": lambda a, o, s: a[0].permute(o.get("perm") or list(range(a[0].dim()))[::-1]),
    "Concat": lambda a, o, s: torch.cat(a, o["axis"]),
    "Expand": lambda a, o, s: a[0].expand(s),
    "GatherElements": lambda a, o, s: torch.gather(a[0], o.get("axis", 0), a[1]),
    "Tile": lambda a, o, s: a[0].repeat(*a[1].tolist()),
    "Einsum": lambda a, o, s: torch.einsum(o["equation"], *a),
}
for _name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
    OPERATORS[_name] = lambda a, o, s: a[0].reshape(s)


OPERATORS["Max"] = lambda a, o, s: _over(torch.maximum, a)
OPERATORS["Min"] = lambda a, o, s: _over(torch.minimum, a)


def _over(function, tensors):
    answer = tensors[0]
    for one in tensors[1:]:
        answer = function(answer, one)
    return answer


@operator("Gemm")
def gemm(a, o, s):
    x = a[0].T if o.get("transA") else a[0]
    w = a[1].T if o.get("transB") else a[1]
    y = o.get("alpha", 1.0) * (x @ w)
    return y + o.get("beta", 1.0) * a[2] if len(a) > 2 else y


@operator("Clip")
def clip(a, o, s):
    low, high = (a[i] if len(a) > i else None for i in (1, 2))
    return torch.clamp(a[0], min=low, max=high) if len(a) > 1 else a[0] * 1


@operator("Selu")
def selu(a, o, s):
    alpha, gamma = o.get("alpha", 1.6732632423543772), o.get("gamma", 1.0507009873554805)
    return gamma * torch.where(a[0] > 0, a[0], alpha * (torch.exp(a[0]) - 1))


@operator("Shrink")
def shrink(a, o, s):
    x, bound, bias = a[0], o.get("lambd", 0.5), o.get("bias", 0.0)
    return torch.where(x > bound, x - bias, torch.where(x < -bound, x + bias, torch.zeros_like(x)))


def reduction(function):
    """Over the axes given, all of them, or (noop_with_empty_axes) none: an axis of one element more."""

    def reduce(a, o, s):
        axes = a[1].tolist() if len(a) > 1 and a[1] is not None else o.get("axes", [])
        if not axes and o.get("noop_with_empty_axes"):
            return function(a[0].unsqueeze(-1), (-1,)).reshape(s)
        return function(a[0], tuple(axes) or tuple(range(a[0].dim()))).reshape(s)

    return reduce


def _product(x, axes):
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis)
    return x


OPERATORS |= {
    "ReduceSum": reduction(lambda x, axes: x.sum(axes)),
    "ReduceMean": reduction(lambda x, axes: x.mean(axes)),
    "ReduceMax": reduction(lambda x, axes: x.amax(axes)),
    "ReduceMin": reduction(lambda x, axes: x.amin(axes)),
    "ReduceL1": reduction(lambda x, axes: x.abs().sum(axes)),
    "ReduceL2": reduction(lambda x, axes: x.square().sum(axes).sqrt()),
    "ReduceSumSquare": reduction(lambda x, axes: x.square().sum(axes)),
    "ReduceLogSum": reduction(lambda x, axes: x.sum(axes).log()),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "ReduceProd": reduction(_product),
}


@operator("CumSum")
def cum_sum(a, o, s):
    axis = int(a[1])
    x = a[0].flip(axis) if o.get("reverse") else a[0]
    y = x.cumsum(axis) - (x if o.get("exclusive") else 0)
    return y.flip(axis) if o.get("reverse") else y


@operator("Split")
def split(a, o, s):
    axis = o.get("axis", 0)
    return a[0].narrow(axis, 0, s[axis])


@operator("Slice")
def cut(a, o, s):
    x = a[0]
    begins, ends, axes, steps = (one.tolist() for one in a[1:5])
    for begin, end, axis, step in zip(begins, ends, axes, steps, strict=True):
        places = list(range(x.shape[axis]))[slice(begin, end if end >= -x.shape[axis] else None, step)]
        x = x.index_select(axis, torch.tensor(places))
    return x


@operator("Gather")
def gather(a, o, s):
    axis = o.get("axis", 0) % a[0].dim()
    places = a[1] % a[0].shape[axis]
    return a[0].index_select(axis, places.reshape(-1)).reshape(s)


@operator("GatherND")
def gather_nd(a, o, s):
    x, places = a[0], a[1]
    if not o.get("batch_dims", 0):
        return x[tuple(places[..., i] for i in range(places.shape[-1]))]
    return torch.stack([gather_nd([one, at], {}, None) for one, at in zip(x, places, strict=True)])


@operator("Compress")
def compress(a, o, s):
    x = a[0] if "axis" in o else a[0].reshape(-1)
    return x.index_select(o.get("axis", 0), torch.nonzero(a[1]).reshape(-1))


@operator("ReverseSequence")
def reverse_sequence(a, o, s):
    time, batch = o.get("time_axis", 0), o.get("batch_axis", 1)
    rows = []
    for row, count in zip(a[0].movedim(batch, 0).movedim(time + (time < batch), 1), a[1].tolist(), strict=True):
        rows.append(torch.cat([row[:count].flip(0), row[count:]]))
    return torch.stack(rows).movedim(1, time + (time < batch)).movedim(0, batch)


@operator("ScatterND")
def scatter_nd(a, o, s):
    places = tuple(a[1][..., i] for i in range(a[1].shape[-1]))
    return a[0].index_put(places, a[2], accumulate=o.get("reduction") == "add")


@operator("ScatterElements")
def scatter_elements(a, o, s):
    way = a[0].scatter_add if o.get("reduction") == "add" else a[0].scatter
    return way(o.get("axis", 0), a[1], a[2])


@operator("SpaceToDepth")
def space_to_depth(a, o, s):
    n, c, h, w = a[0].shape
    b = o["blocksize"]
    return a[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(s)


@operator("DepthToSpace")
def depth_to_space(a, o, s):
    n, c, h, w = a[0].shape
    b = o["blocksize"]
    if o.get("mode", "DCR") == "DCR":
        return a[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(s)
    return F.pixel_shuffle(a[0], b)


@operator("Pad")
def pad(a, o, s):
    x, amounts = a[0], a[1].tolist()
    axes = [axis % x.dim() for axis in a[3].tolist()] if len(a) > 3 else list(range(x.dim()))
    widths = [(0, 0)] * x.dim()
    for i, axis in enumerate(axes):
        widths[axis] = (amounts[i], amounts[len(axes) + i])
    mode = o.get("mode", "constant")
    if mode == "constant":
        flat = [width for pair in reversed(widths) for width in pair]
        inside = F.pad(x, flat)
        value = a[2] if len(a) > 2 and a[2] is not None else 0
        return inside + (1 - F.pad(torch.ones_like(x), flat)) * value
    places = np.pad(np.arange(x.numel()).reshape(x.shape), widths, mode=mode)
    return x.reshape(-1)[torch.from_numpy(places)]


@operator("Col2Im")
def col2im(a, o, s):
    pads = o.get("pads", [0, 0, 0, 0])
    size = [one + pads[i] + pads[2 + i] for i, one in enumerate(a[1].tolist())]
    whole = F.fold(a[0], size, a[2].tolist(), stride=o.get("strides", 1), dilation=o.get("dilations", 1))
    return whole[:, :, pads[0] : size[0] - pads[2], pads[1] : size[1] - pads[3]]


@operator("Trilu")
def trilu(a, o, s):
    k = int(a[1]) if len(a) > 1 else 0
    return torch.triu(a[0], k) if o.get("upper", 1) else torch.tril(a[0], k)


@operator("TopK")
def top_k(a, o, s):
    return torch.topk(a[0], int(a[1]), dim=o.get("axis", -1)).values


@operator("Resize")
def resize(a, o, s):
    """Of the last two axes; the scale is the one given, else the ratio of the sizes."""
    scales = a[2].tolist()[-2:] if len(a) > 2 and a[2] is not None else None
    how = {"size": list(s[2:])} if scales is None else {"scale_factor": scales, "recompute_scale_factor": False}
    mode = o.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(a[0], o, s, scales or [s[i] / a[0].shape[i] for i in (2, 3)])
    align = o.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    if o.get("antialias"):
        raise NoOpinion("torch's antialias is another one than ONNX's, at the edges")
    return F.interpolate(a[0], **how, mode={"linear": "bilinear", "cubic": "bicubic"}[mode], align_corners=align)


def _nearest(x, o, s, scales):
    for axis, scale in zip((2, 3), scales, strict=True):
        out = np.arange(s[axis])
        if o.get("coordinate_transformation_mode", "half_pixel") == "asymmetric":
            places = np.floor(out / scale)
        else:
            places = np.ceil((out + 0.5) / scale - 0.5 - 0.5)  # halves go down: round_prefer_floor
        x = x.index_select(axis, torch.from_numpy(places.clip(0, x.shape[axis] - 1).astype(np.int64)))
    return x


@operator("GridSample")
def grid_sample(a, o, s):
    mode = o.get("mode", "linear").replace("linear", "bilinear").replace("bibi", "bi")
    corners = bool(o.get("align_corners", 0))
    return F.grid_sample(a[0], a[1], mode, o.get("padding_mode", "zeros"), corners)
