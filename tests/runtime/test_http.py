"""The local HTTP door with a real session, real samples and a real socket."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime import rows
from edgeml_runtime.errors import AgentRefused, ShapeMismatch
from edgeml_runtime.interfaces import http as door
from edgeml_runtime.metrics import Counters
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Loaded, Serving
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Bounds, Feature, Manifest, ReleaseVariant, blob_of
from edgeml_runtime.wire.messages import Running
from tests.runtime.graphs import colours, mlp

ROW = [0.5] * 4
MIXED = (
    Feature(name="a", kind="numeric"),
    Feature(name="colour", kind="categorical"),
    Feature(name="b", kind="numeric"),
)


def a_manifest(session: Session, graph: bytes, **changes: Any) -> Manifest:
    return Manifest(
        **{
            "model": "toy",
            "release": "r1",
            "task": "classification",
            "created": "2030-01-01T00:00:00Z",
            "inputs": session.inputs,
            "outputs": session.outputs,
            "features": tuple(Feature(name=name, kind="numeric") for name in "abcd"),
            "classes": ("no", "yes", "7"),
            "variants": (ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=Bounds(max_abs=0.0, label_flips=0)),),
            "default_variant": "fp32",
            "boards": {},
            "goldens": blob_of(b"goldens"),
            **changes,
        }
    )


def loaded(graph: bytes, **changes: Any) -> Loaded:
    session = Session(graph)
    return Loaded(
        session, a_manifest(session, graph, **changes), Running(model="toy", release="r1", variant="fp32", graph="")
    )


CLASSIFIER = mlp(4, 8, 3)


@dataclass
class Door:
    """A running door and one way to knock."""

    serving: Serving
    samples: Samples
    port: int
    changes: list[None]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        kind = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request(method, path, data, kind)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Door]:
    counters, changes = Counters("boot"), list[None]()
    serving, samples = Serving(counters), Samples(tmp_path / "samples.db")
    serving.swap(loaded(CLASSIFIER))
    doors = door.Doors(serving, samples, counters, lambda: {"device": "pi-1"}, lambda: changes.append(None))
    server = door.serve(doors, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Door(serving, samples, int(server.server_address[1]), changes)
    server.shutdown()
    server.server_close()
    thread.join()
    samples.close()


def test_rows_by_order_and_by_name_get_the_same_answer(opened: Door) -> None:
    code, by_order = opened.ask("POST", "/predict", {"rows": [[1, 2, 3, 4]]})
    _, by_name = opened.ask("POST", "/predict", {"rows": [{"d": 4, "c": "3", "b": 2, "a": 1, "unknown": "x"}]})
    assert code == 200 and by_order == by_name
    wanted = Session(CLASSIFIER).run({"numeric": np.array([[1, 2, 3, 4]], np.float32)})
    assert by_order["labels"] == [("no", "yes", "7")[int(wanted["label"][0])]]
    np.testing.assert_allclose(by_order["probabilities"], wanted["probabilities"], rtol=1e-6)
    assert by_order["classes"] == ["no", "yes", "7"] and by_order["release"] == "r1"


def test_raw_float32_gets_the_same_answer_as_json(opened: Door) -> None:
    table = np.random.default_rng(0).normal(size=(5, 4)).astype("<f4")
    _, told = opened.ask("POST", "/predict", {"rows": table.tolist()})
    raw = {"Content_Type": door.RAW, "Accept": door.RAW}
    code, data = opened.ask("POST", "/predict", table.tobytes(), **raw)
    assert code == 200
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(5, 3), told["probabilities"], rtol=1e-6)
    code, told = opened.ask("POST", "/predict", b"12345", Content_Type=door.RAW)
    assert code == 400 and "16 bytes" in told["error"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"rows": [ROW, [1, 2, 3]]}, "row 2 has 3 values, the model takes 4: a, b, c, d"),
        ({"rows": [[1, 2, "much", 4]]}, "row 1, column 'c': 'much' is not a number"),
        ({"rows": [{"a": 1, "b": 2, "c": 3}]}, "row 1: column 'd' is missing"),
        ({"rows": [[1, 2, 3, 1e39]]}, "row 1, column 'd': 1e+39 is beyond the range of float32"),
        ({"rows": [[1, 2, 3, [4]]]}, "column 'd': [4] is not a number"),
        ({"rows": ["text"]}, "neither a list nor an object"),
        ({"rows": []}, "no rows"),
        ({}, "no rows"),
        (b"[1, 2", "not JSON"),
        ([1], "no JSON object"),
    ],
)
def test_a_wrong_row_is_answered_by_row_column_and_value(opened: Door, body: Any, why: str) -> None:
    code, told = opened.ask("POST", "/predict", body)
    assert code == 400 and why in told["error"] and told["reason"] == "ShapeMismatch"
    assert opened.ask("POST", "/predict", {"rows": [ROW]})[0] == 200


def test_a_kept_row_gets_its_label_later(opened: Door) -> None:
    _, told = opened.ask("POST", "/predict", {"rows": [ROW, ROW], "keep": True})
    assert opened.samples.count() == 2 and opened.samples.labelled() == 0
    code, _ = opened.ask("POST", "/label", {"id": told["ids"][1], "target": "yes"})
    assert code == 200 and len(opened.changes) == 1
    inputs, targets = opened.samples.rows()
    assert inputs["numeric"].tolist() == [ROW] and targets.tolist() == [1]
    assert opened.ask("POST", "/label", {"id": 999, "target": "yes"})[0] == 404
    code, told = opened.ask("POST", "/label", {"id": 1, "target": "perhaps"})
    assert code == 400 and "'perhaps' is no class of toy: no, yes, 7" in told["error"]


def test_labelled_rows_come_in_bulk_and_a_class_name_wins_over_an_index(opened: Door) -> None:
    code, told = opened.ask("POST", "/samples", {"rows": [ROW] * 4, "targets": ["no", "7", 7, 1]})
    assert code == 200 and told["labelled"] == 4
    assert opened.samples.rows()[1].tolist() == [0, 2, 2, 1]
    code, told = opened.ask("POST", "/samples", {"rows": [ROW] * 2, "targets": ["no"]})
    assert code == 400 and opened.samples.count() == 4


def test_without_a_model_predictions_are_answered_with_what_to_do(opened: Door) -> None:
    opened.serving.swap(None)
    code, told = opened.ask("POST", "/predict", {"rows": [ROW]})
    assert code == 503 and "deploy one" in told["error"]


def test_status_and_metrics_are_there_for_programs(opened: Door) -> None:
    opened.ask("POST", "/predict", {"rows": [ROW] * 3})
    assert opened.ask("GET", "/status") == (200, {"device": "pi-1"})
    code, text = opened.ask("GET", "/metrics")
    lines = text.decode().splitlines()
    assert code == 200 and "edgeml_predictions_total 3" in lines and "edgeml_request_seconds_count 1" in lines
    buckets = [int(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert buckets == sorted(buckets) and buckets[-1] == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/nothing", {}, 404),
        ("POST", "/nothing", {}, 404),
        ("GET", "/status", {"Host": "evil.example:80"}, 403),
        ("POST", "/predict", {"Host": "evil.example"}, 403),
        ("POST", "/predict", {"Content_Type": "text/plain"}, 415),
        ("POST", "/predict", {"Content_Length": str(door.MAX_BODY_BYTES + 1)}, 413),
        ("POST", "/predict", {"Content_Length": "-1"}, 413),
    ],
)
def test_what_is_not_for_this_door_is_turned_away(
    opened: Door, method: str, path: str, headers: dict[str, str], code: int
) -> None:
    answered, told = opened.ask(method, path, {"rows": [ROW]} if method == "POST" else None, **headers)
    assert answered == code and told["error"]


def test_a_port_that_is_taken_is_named(opened: Door) -> None:
    with pytest.raises(AgentRefused, match=f"HTTP port {opened.port}"):
        door.serve(door.Doors(opened.serving, opened.samples, Counters(""), dict, lambda: None), opened.port)


def test_numbers_and_categories_go_to_their_inputs_in_the_order_of_the_features() -> None:
    graph = colours()
    manifest = a_manifest(Session(graph), graph, features=MIXED, task="regression", classes=())
    inputs = rows.parse(manifest, [[1, "red", 2], {"b": "4", "a": None, "colour": 3}])
    assert inputs["categorical"].tolist() == [["red"], ["3"]]
    np.testing.assert_array_equal(inputs["numeric"], np.array([[1, 2], [np.nan, 4]], np.float32))
    serving = Serving(Counters(""))
    serving.swap(loaded(graph, features=MIXED, task="regression", classes=()))
    assert serving.predict(inputs).document()["predictions"] == [4.0, None]


def test_a_model_without_features_takes_arrays() -> None:
    graph = CLASSIFIER
    manifest = a_manifest(Session(graph), graph, features=(), task="tensor")
    assert rows.parse(manifest, [ROW, ROW])["numeric"].shape == (2, 4)
    with pytest.raises(ShapeMismatch, match=r"row 1, input 'numeric': shape \(3,\), the model takes \(4,\)"):
        rows.parse(manifest, [[1, 2, 3]])


def manifest_of_four() -> Manifest:
    return a_manifest(Session(CLASSIFIER), CLASSIFIER)


def test_a_csv_may_have_a_header_in_any_order_or_none() -> None:
    manifest = manifest_of_four()
    by_name = rows.parse(manifest, rows.read_text(manifest, "d,c,target,b,a\n4,3,x,2,1\n", name="f.csv"))
    in_order = rows.parse(manifest, rows.read_text(manifest, "1,2,3,4\n\n", name="f.csv"))
    assert by_name["numeric"].tolist() == in_order["numeric"].tolist() == [[1, 2, 3, 4]]
    missing = rows.parse(manifest, rows.read_text(manifest, "1,,3,4\n", name="f.csv"))
    assert np.isnan(missing["numeric"][0, 1])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b,c\n1,2,3\n", "column 'd' is missing"),
        ("a,b,c,d\n1,2,3\n", "row 1 has 3 values, its header 4"),
        ("1,2,3\n", "row 1 has 3 values, the model takes 4"),
        ("1,2,x,4\n", "row 1, column 'c': 'x' is not a number"),
        ("a,b,c,d\n", "a header and no rows"),
        ("\n\n", "no rows"),
        ("[[1, 2, 3", "is not JSON"),
        ('{"row": []}', "no rows"),
    ],
)
def test_a_wrong_file_is_answered_with_what_is_wrong(text: str, why: str) -> None:
    manifest = manifest_of_four()
    with pytest.raises(ShapeMismatch, match=why):
        rows.parse(manifest, rows.read_text(manifest, text, name="f.csv"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("abcdx"), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300)
@given(JSON)
def test_whatever_is_sent_gives_finite_shapes_or_a_clear_refusal(body: Any) -> None:
    manifest = manifest_of_four()
    for features in (manifest.features, MIXED, ()):
        changed = Manifest(**{**vars(manifest), "features": features})
        try:
            inputs = rows.parse(changed, body)
        except ShapeMismatch as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert all(len(array) == len(body) for array in inputs.values())


@given(st.binary(max_size=100))
def test_any_bytes_are_whole_rows_or_refused(data: bytes) -> None:
    try:
        inputs = rows.parse_bytes(manifest_of_four(), data)
    except ShapeMismatch:
        assert not data or len(data) % 16
    else:
        assert inputs["numeric"].shape == (len(data) // 16, 4)
