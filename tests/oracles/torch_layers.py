"""Layers of networks in torch, in the same table: convolutions, pools, normalizations, attention, recurrent ones."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_operators import OPERATORS, operator

__all__ = ["OPERATORS"]  # the whole table


def _pads(o, sizes, out, kernel):
    """Return begin and end of every axis."""
    rank = len(kernel)
    strides, dilations = o.get("strides", [1] * rank), o.get("dilations", [1] * rank)
    auto = o.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        found = []
        for i in range(rank):
            total = max(0, (out[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - sizes[i])
            less, more = total // 2, total - total // 2
            found.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return found
    pads = o.get("pads", [0] * 2 * rank)
    return [(pads[i], pads[rank + i]) for i in range(rank)]


@operator("Conv")
def conv(a, o, s):
    x, w = a[0], a[1]
    rank = w.dim() - 2
    pads = _pads(o, x.shape[2:], s[2:], w.shape[2:])
    x = F.pad(x, [width for pair in reversed(pads) for width in pair])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return function(
        x,
        w,
        a[2] if len(a) > 2 else None,
        stride=o.get("strides", [1] * rank),
        dilation=o.get("dilations", [1] * rank),
        groups=o.get("group", 1),
    )


@operator("ConvTranspose")
def conv_transpose(a, o, s):
    rank = a[1].dim() - 2
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[rank]
    y = function(
        a[0],
        a[1],
        stride=o.get("strides", [1] * rank),
        dilation=o.get("dilations", [1] * rank),
        groups=o.get("group", 1),
    )
    pads, more = o.get("pads", [0] * 2 * rank), o.get("output_padding", [0] * rank)
    for i in range(rank):
        end = y.shape[2 + i] - pads[rank + i] + more[i]
        beyond = [0] * 2 * (rank - 1 - i) + [0, max(0, end - y.shape[2 + i])]  # only the bias reaches there
        y = F.pad(y, beyond).narrow(2 + i, pads[i], end - pads[i])
    return y + a[2].reshape(1, -1, *[1] * rank) if len(a) > 2 else y


@operator("MaxPool")
def max_pool(a, o, s):
    pads = o.get("pads", [0, 0, 0, 0])
    x = F.pad(a[0], [pads[1], pads[3], pads[0], pads[2]], value=-math.inf)
    return F.max_pool2d(x, o["kernel_shape"], o.get("strides", [1, 1]), ceil_mode=bool(o.get("ceil_mode")))


def _windows(x, o, s):
    """Return for each of two axes the 0/1 matrix (windows, places) and how many places count, padded or not."""
    kernel = o["kernel_shape"]
    strides, dilations = o.get("strides", [1, 1]), o.get("dilations", [1, 1])
    matrices, inside, padded = [], [], []
    for i, (begin, end) in enumerate(_pads(o, x.shape[2:], s[2:], kernel)):
        size = x.shape[2 + i]
        at = np.arange(s[2 + i])[:, None] * strides[i] - begin + np.arange(kernel[i])[None] * dilations[i]
        matrix = np.zeros((s[2 + i], size))
        for row, places in enumerate(at):
            for place in places[(places >= 0) & (places < size)]:
                matrix[row, place] += 1
        matrices.append(torch.from_numpy(matrix).to(x.dtype))
        inside.append(((at >= 0) & (at < size)).sum(1))
        padded.append(((at >= -begin) & (at < size + end)).sum(1))
    return matrices, np.outer(*inside), np.outer(*padded)


@operator("AveragePool")
def average_pool(a, o, s):
    (rows, columns), inside, padded = _windows(a[0], o, s)
    count = torch.from_numpy(padded if o.get("count_include_pad") else inside)
    return torch.einsum("nchw,ih,jw->ncij", a[0], rows, columns) / count


@operator("LpPool")
def lp_pool(a, o, s):
    (rows, columns), _, _ = _windows(a[0], o, s)
    p = o.get("p", 2)
    return torch.einsum("nchw,ih,jw->ncij", a[0].abs() ** p, rows, columns) ** (1 / p)


@operator("GlobalLpPool")
def global_lp_pool(a, o, s):
    p = o.get("p", 2)
    return ((a[0].abs() ** p).sum(dim=tuple(range(2, a[0].dim())), keepdim=True)) ** (1 / p)


@operator("MaxUnpool")
def max_unpool(a, o, s):
    return a[0].new_zeros(math.prod(s)).scatter(0, a[1].reshape(-1), a[0].reshape(-1)).reshape(s)


@operator("LayerNormalization")
def layer_normalization(a, o, s):
    shape = a[0].shape[o.get("axis", -1) % a[0].dim() :]
    bias = a[2].expand(shape) if len(a) > 2 else None
    return F.layer_norm(a[0], shape, a[1].expand(shape), bias, o.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(a, o, s):
    return F.instance_norm(a[0], weight=a[1], bias=a[2], eps=o.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(a, o, s):
    channels, groups = a[0].shape[1], o["num_groups"]
    scale, bias = (one.repeat_interleave(channels // len(one)) for one in a[1:3])
    return F.group_norm(a[0], groups, scale, bias, o.get("epsilon", 1e-5))


@operator("LpNormalization")
def lp_normalization(a, o, s):
    return a[0] / torch.linalg.vector_norm(a[0], o.get("p", 2), dim=o.get("axis", -1), keepdim=True)


@operator("MeanVarianceNormalization")
def mean_variance(a, o, s):
    axes = o.get("axes", [0, 2, 3])
    return (a[0] - a[0].mean(axes, keepdim=True)) / a[0].std(axes, correction=0, keepdim=True)


@operator("LRN")
def local_response(a, o, s):
    return F.local_response_norm(a[0], o["size"], o.get("alpha", 1e-4), o.get("beta", 0.75), o.get("bias", 1.0))


@operator("BatchNormalization")
def batch_normalization(a, o, s):
    x, scale, bias, mean, variance = a
    epsilon = o.get("epsilon", 1e-5)
    if o.get("training_mode"):
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
    shape = [-1, *[1] * (x.dim() - 2)]
    deviation = torch.sqrt(variance + epsilon).reshape(shape)
    return (x - mean.reshape(shape)) / deviation * scale.reshape(shape) + bias.reshape(shape)


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(a, o, s):
    return F.nll_loss(a[0], a[1], *a[2:], ignore_index=o.get("ignore_index", -100), reduction=o["reduction"])


@operator("SoftmaxCrossEntropyLoss")
def cross_entropy(a, o, s):
    return F.cross_entropy(a[0], a[1], *a[2:], ignore_index=o.get("ignore_index", -100), reduction=o["reduction"])


ACTIVATIONS = {  # each of alpha and beta
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Elu": lambda x, alpha, beta: F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "LeakyRelu": lambda x, alpha, beta: F.leaky_relu(x, alpha),
    "Relu": lambda x, alpha, beta: torch.relu(x),
    "ScaledTanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "Sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "Softplus": lambda x, alpha, beta: F.softplus(x, threshold=100),
    "Softsign": lambda x, alpha, beta: F.softsign(x),
    "Tanh": lambda x, alpha, beta: torch.tanh(x),
    "ThresholdedRelu": lambda x, alpha, beta: F.threshold(x, alpha, 0),
}
ALPHA = {"Affine": 0.0, "Elu": 1.0, "HardSigmoid": 0.2, "LeakyRelu": 0.01, "ScaledTanh": 0.0, "ThresholdedRelu": 0.0}
BETA = {"Affine": 0.0, "HardSigmoid": 0.5, "ScaledTanh": 0.0}


def _activations(o, default):
    """Return the activations of all directions, clipped; alphas and betas belong, in order, to those that take them."""
    alphas, betas = list(o.get("activation_alpha", [])), list(o.get("activation_beta", []))
    clip, found = o.get("clip", math.inf), []
    for index, name in enumerate(o.get("activations") or default * 2):
        alpha = alphas.pop(0) if name in ALPHA and alphas else ALPHA.get(name)
        beta = betas.pop(0) if name in BETA and betas else BETA.get(name)
        edge = math.inf if len(default) == 3 and index % 3 == 2 else clip  # not the cell of an LSTM
        found.append(lambda x, f=ACTIVATIONS[name], a=alpha, b=beta, edge=edge: f(x.clamp(-edge, edge), a, b))
    return found


def _padded(a, o, module, gates):
    """Run torch's own layer over packed rows of unequal length; `gates` says where torch's gates stand in ONNX."""
    x, w, r, b, lengths, h0, c0 = a[:7]
    units, many = o["hidden_size"], w.shape[0]
    layer = module(x.shape[2], units, bidirectional=many == 2).double()
    weights = {}
    for i, end in enumerate(("", "_reverse")[:many]):
        bias = b[i].reshape(2, len(gates), units)[:, gates].reshape(2, -1)
        weights |= {f"bias_ih_l0{end}": bias[0], f"bias_hh_l0{end}": bias[1]}
        for name, part in {"ih": w[i], "hh": r[i]}.items():
            parts = part.reshape(len(gates), units, -1)[gates]
            weights[f"weight_{name}_l0{end}"] = parts.reshape(part.shape)
    packed = pack_padded_sequence(x, lengths.to(torch.int64), enforce_sorted=False)
    state = (h0, c0) if c0 is not None else h0
    y, _ = torch.func.functional_call(layer, weights, (packed, state))
    steps, _ = pad_packed_sequence(y, total_length=len(x))
    return steps.reshape(len(x), x.shape[1], many, units).transpose(1, 2)


def _directions(a, o, cell, default, packed=None):
    """Run `cell` over the steps of every direction: (steps, directions, rows, units)."""
    a = [*a, *[None] * (8 - len(a))]
    x, w, r, b, lengths, h0, c0, peepholes = a
    way, units = o.get("direction", "forward"), o["hidden_size"]
    plain = b is not None and h0 is not None and peepholes is None and "activations" not in o and way != "reverse"
    if lengths is not None and plain and packed:
        return _padded(a, o, *packed)
    answers, acts = [], _activations(o, default)
    ends = torch.full((x.shape[1],), len(x)) if lengths is None else lengths
    for i in range(w.shape[0]):
        backwards = way == "reverse" or i == 1
        bias = b[i] if b is not None else w.new_zeros(2 * w.shape[1])
        weights = (w[i], r[i], *bias.chunk(2), *([peepholes[i]] if peepholes is not None else []))
        zero = x.new_zeros(x.shape[1], units)
        state = (h0[i] if h0 is not None else zero, c0[i] if c0 is not None else zero)
        found = [zero] * len(x)
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            inside = (t < ends)[:, None]
            new = cell(x[t], state, weights, acts[i * len(default) :][: len(default)], o)
            state = tuple(n if n is None else torch.where(inside, n, s) for n, s in zip(new, state, strict=True))
            found[t] = torch.where(inside, state[0], 0.0)
        answers.append(torch.stack(found))
    return torch.stack(answers, 1)


@operator("LSTM")
def lstm(a, o, s):
    def cell(x, state, weights, acts, options):
        w, r, wb, rb, *peepholes = weights
        i, out, f, c = (x @ w.T + state[0] @ r.T + wb + rb).chunk(4, dim=-1)
        p_i, p_o, p_f = peepholes[0].chunk(3) if peepholes else (0.0, 0.0, 0.0)
        gate, fresh, top = acts
        i = gate(i + p_i * state[1])
        f = 1 - i if options.get("input_forget") else gate(f + p_f * state[1])
        new = f * state[1] + i * fresh(c)
        return gate(out + p_o * new) * top(new), new

    return _directions(a, o, cell, ["Sigmoid", "Tanh", "Tanh"], (torch.nn.LSTM, [0, 2, 3, 1]))


@operator("GRU")
def gru(a, o, s):
    def cell(x, state, weights, acts, options):
        (wz, wr, wh), (rz, rr, rh), (wbz, wbr, wbh), (rbz, rbr, rbh) = (part.chunk(3) for part in weights)
        h = state[0]
        z = acts[0](x @ wz.T + h @ rz.T + wbz + rbz)
        reset = acts[0](x @ wr.T + h @ rr.T + wbr + rbr)
        if options.get("linear_before_reset"):
            new = acts[1](x @ wh.T + reset * (h @ rh.T + rbh) + wbh)
        else:
            new = acts[1](x @ wh.T + (reset * h) @ rh.T + rbh + wbh)
        return (1 - z) * new + z * h, None

    packed = (torch.nn.GRU, [1, 0, 2]) if o.get("linear_before_reset") else None
    return _directions(a, o, cell, ["Sigmoid", "Tanh"], packed)


@operator("RNN")
def rnn(a, o, s):
    def cell(x, state, weights, acts, options):
        w, r, wb, rb = weights
        return acts[0](x @ w.T + state[0] @ r.T + wb + rb), None

    return _directions(a, o, cell, ["Tanh"], (torch.nn.RNN, [0]))


@operator("Scan")
def scan(a, o, s):
    if o["body"] == "cell":
        h, w, x = a
        for step in x.flip(0) if o.get("scan_input_directions") == [1] else x:
            h = torch.tanh(h @ w + step)
        return h
    if o["body"] == "running":
        one, other, x = a
        for step in x:
            one, other = other * step, torch.sin(one) + step
        return one
    return torch.sigmoid(a[0]) * a[1]
