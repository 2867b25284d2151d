"""VJP rule of Einsum: each factor's gradient is the sum over what the others and the answer have and it has not."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp
from edgeml.errors import UnsupportedModel


@dataclass(frozen=True)
class Equation:
    """One letter per axis: of every factor, and of the answer."""

    terms: tuple[str, ...]
    out: str


def read_equation(text: str, ranks: list[int]) -> Equation:
    """Return `text` with its dots spelled out for factors of these `ranks`, and with its answer.

    Without an arrow the answer has the letters that occur once, sorted (numpy.einsum).

    >>> read_equation("...ij,jk", [3, 2])
    Equation(terms=('aij', 'jk'), out='aik')
    """
    left, arrow, out = text.replace(" ", "").partition("->")
    terms = left.split(",")
    dotted = [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    spare = [letter for letter in string.ascii_letters if letter not in text]
    dots = "".join(spare[: max(dotted, default=0)])  # they stand for as many axes in every term (ONNX Einsum)
    if not arrow:
        once = Counter(left.replace(".", "").replace(",", ""))
        out = "..." * bool(dotted) + "".join(sorted(letter for letter, times in once.items() if times == 1))
    return Equation(tuple(term.replace("...", dots) for term in terms), out.replace("...", dots))


@vjp("Einsum", refuses="a diagonal (one letter twice in a term); dots that broadcast a size of 1")
def einsum(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    text = attributes(node)["equation"].decode()
    shapes = [g.shape(name, node) for name in node.input]
    equation = read_equation(text, [len(shape) for shape in shapes])
    terms, out = equation.terms, equation.out
    sizes: dict[str, set[object]] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    stretched = [letter for letter, found in sizes.items() if 1 in found and len(found) > 1]
    if stretched or any(len(set(term)) < len(term) for term in (*terms, out)):
        raise UnsupportedModel(f"{describe(node)}: {text!r} has a diagonal or broadcasts a size of 1: no gradient rule")
    grads: list[str | None] = []
    for place, name in enumerate(node.input):
        others = [(terms[i], node.input[i]) for i in range(len(terms)) if i != place]
        known = set(out).union(*(term for term, _ in others))
        wanted = "".join(letter for letter in terms[place] if letter in known)
        factors = ",".join([out, *(term for term, _ in others)])
        dx = g.op("Einsum", dy, *(other for _, other in others), equation=f"{factors}->{wanted}")
        if wanted != terms[place]:  # axes that were summed alone come back as copies
            missing = [i for i, letter in enumerate(terms[place]) if letter not in known]
            dx = g.op("Expand", g.op("Unsqueeze", dx, g.ints(missing)), g.shape_of(name))
        grads.append(dx)
    return tuple(grads)
