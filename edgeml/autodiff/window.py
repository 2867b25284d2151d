"""How a kernel moves over a picture, and what is known of a convolution before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.shapes import Shape
from edgeml.errors import UnsupportedModel


@dataclass(frozen=True)
class Window:
    """How a kernel moves over a picture: one entry per spatial axis, `pads` begins then ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def axes(self) -> list[int]:
        return list(range(2, 2 + self.rank))


Tensors = tuple[str, str, str]  # of a convolution: X, dY and the weight


@dataclass(frozen=True)
class Layer:
    """A convolution whose sizes are known but for its rows: channels, and positions per axis before and after."""

    move: Window
    outer: int
    inner: int  # of one group
    before: tuple[int, ...]
    after: tuple[int, ...]


def window(g: GraphBuilder, node: NodeProto, kernel: tuple[int, ...]) -> Window:
    """Return the window of `node`; raise UnsupportedModel where padding depends on sizes that are not known."""
    options, rank = attributes(node), len(kernel)
    strides, dilations = (tuple(options.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = tuple(options.get("pads", [0] * 2 * rank))
    if (auto := options.get("auto_pad", b"NOTSET")) in (b"SAME_UPPER", b"SAME_LOWER"):
        before, after = (sizes(g.shape(name, node)[2:], node) for name in (node.input[0], node.output[0]))
        total = [
            max(0, (after[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - before[i]) for i in range(rank)
        ]
        small, large = [half // 2 for half in total], [half - half // 2 for half in total]
        pads = (*small, *large) if auto == b"SAME_UPPER" else (*large, *small)
    return Window(kernel, strides, dilations, pads, int(options.get("group", 1)))


def layer_of(g: GraphBuilder, ends: tuple[str, str], *, weight: str, move: Window) -> Layer | None:
    """Return the layer between the tensors `ends` with this `weight`, None where a size of it is not known."""
    before, after = (g.shapes.get(name, (None, None, None)) for name in ends)
    known = (*before[2:], *after[2:], *g.shapes.get(weight, (None,))[:2])
    if not all(isinstance(size, int) for size in known):
        return None
    at = [int(size or 0) for size in known]
    return Layer(move, at[-2], at[-1], tuple(at[: move.rank]), tuple(at[move.rank : 2 * move.rank]))


def sizes(shape: Shape, node: NodeProto) -> list[int]:
    """Return `shape`, whose sizes must all be known."""
    known = [size for size in shape if isinstance(size, int)]
    if len(known) < len(shape):
        raise UnsupportedModel(f"{describe(node)}: the spatial sizes {shape} must be known to differentiate it")
    return known


def kernel_of(g: GraphBuilder, node: NodeProto) -> tuple[int, ...]:
    """Return the sizes of the kernel of a convolution."""
    return tuple(sizes(g.shape(node.input[1], node)[2:], node))
