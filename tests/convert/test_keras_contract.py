"""Networks of every kind convert exactly or are refused with a reason, as docs/support-keras.md says."""

import re
from pathlib import Path

import pytest

from edgeml import convert, graph
from tests.convert.architectures import ARCHITECTURES, build
from tests.convert.support_keras import outcome_of

pytestmark = pytest.mark.extras
PAGE = Path(__file__).parents[2] / "docs" / "support-keras.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<result>exact|stated|refused) \| (?P<note>[^|]*) \|$", re.MULTILINE)
TOLD = {found["name"]: found for found in ROW.finditer(PAGE.read_text())}


LONG = ("MobileNetV3Small",)  # a hundred more layers than any other


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in ARCHITECTURES])
def test_it_converts_or_is_refused_as_the_page_says(name, keras, tmp_path):
    found = outcome_of(name, keras, tmp_path)
    assert (found.result, found.note) == (TOLD[name]["result"], TOLD[name]["note"]), "write the page anew"
    assert found.result != "refused" or len(found.note) > 20  # a reason that a person can use
    if found.model is not None:
        inputs, outputs = graph.inputs(found.model), graph.outputs(found.model)
        assert all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))  # any number of rows


def test_the_page_lists_nothing_else():
    assert set(TOLD) == set(ARCHITECTURES)


@pytest.fixture(
    scope="module",
    params=["GRU", "several inputs and outputs", "regressor behind Normalization", "DS-CNN", "activations"],
)
def network(request, keras, tmp_path_factory):
    """A network, and what its .keras file converts to."""
    network = build(request.param, keras)
    path = tmp_path_factory.mktemp("network") / "network.keras"
    network.save(path)
    return network, convert.read_model(path)


@pytest.mark.parametrize("form", ["h5", "SavedModel", "live"])
def test_every_form_gives_the_same_graph(network, form, tmp_path):
    network, first = network
    if form == "live":
        model = convert.from_keras(network)
    elif form == "h5":
        network.save(tmp_path / "network.h5")
        model = convert.read_model(tmp_path / "network.h5")
    else:
        network.export(str(tmp_path / "network"), verbose=False)
        model = convert.read_model(tmp_path / "network")
    operators, wanted = (sorted(node.op_type for node in graph.load(one).graph.node) for one in (model, first))
    assert operators == wanted
    if form != "SavedModel":  # which calls its ends by its signature
        assert graph.inputs(model) == graph.inputs(first)
        assert graph.outputs(model) == graph.outputs(first)
