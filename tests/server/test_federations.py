"""Federated rounds over both brokers, with devices that train for real."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sklearn.linear_model import LogisticRegression

from edgeml import graph, tasks
from edgeml.autodiff import SGD, training_step
from edgeml.federated import Privacy, Update
from edgeml.registry import FederationOptions, Registry
from edgeml.server.course import own_losses
from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.messages import TaskOffer
from tests.server.stand_ins import PATIENCE_S, Device, InMemoryRetrain, Server, a_bundle, a_model, until

pytestmark = pytest.mark.broker
OPTIONS: dict[str, Any] = {"rounds": 3, "min_devices": 3, "learning_rate": 0.1, "deadline_s": 20}


@pytest.fixture
def cohort(registry: Registry, server: Server, device: Callable[..., Device]) -> list[Device]:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    return [device(name, seed=number) for number, name in enumerate(("a", "b", "c"))]


def wait(registry: Registry, federation_id: str) -> str:
    until(lambda: registry.federation(federation_id).is_over, f"federation {federation_id}")
    return registry.federation(federation_id).state


def waiting_for(go: threading.Event) -> Callable[[TaskOffer], None]:
    """Return what makes a device slower than whatever `go` waits for, however slow this machine is."""

    def wait(offer: TaskOffer) -> None:
        assert go.wait(PATIENCE_S)

    return wait


def test_rounds_improve_the_model_and_the_best_is_offered_for_release(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    federation_id = registry.request_federation("toy", OPTIONS)
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    assert [done.round for done in record.rounds] == [1, 2, 3]
    for done in record.rounds:
        assert (done.participants, done.rows, done.refused) == (("a", "b", "c"), 180, {})
        assert done.bytes_up > 0
        assert done.bytes_down > 0
    assert record.rounds[-1].loss < record.outcome["before"]["loss"]
    assert record.outcome["released"] == "new-release"
    assert record.detail == "better after 3 rounds"
    assert len(retrain.released) == 1


def test_the_trajectory_over_mqtt_is_that_of_fedavg_without_it(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    federation_id = registry.request_federation("toy", OPTIONS)
    assert wait(registry, federation_id) == "SUCCEEDED"
    task = tasks.training(training_step(a_model(), optimizer=SGD(0.9)), epochs=1, batch_size=16)
    session = Session(task.data)
    parameters = dict(task.parameters)
    for number in range(3):
        scalars = {"lr": np.array(0.1, np.float32), "seed": np.array(number, np.int64)}
        outputs = [session.run({**one.rows, **parameters, **scalars}) for one in cohort]
        parameters = {
            name: (value + sum(out[f"delta.{name}"].astype(np.float64) for out in outputs) / 3).astype(np.float32)
            for name, value in parameters.items()
        }
    final = graph.initializers(retrain.released[0])
    for name, value in parameters.items():
        np.testing.assert_allclose(final[name], value, atol=1e-6)


def test_a_device_that_refuses_is_left_out_by_name(registry: Registry, cohort: list[Device]) -> None:
    cohort[1].refuses = "policy: no training"
    federation_id = registry.request_federation("toy", OPTIONS | {"min_devices": 2, "rounds": 1})
    assert wait(registry, federation_id) == "SUCCEEDED"
    done = registry.federation(federation_id).rounds[0]
    assert (done.participants, done.refused) == (("a", "c"), {"b": "policy: no training"})


def test_a_round_below_quorum_ends_with_everybodys_reason(registry: Registry, cohort: list[Device]) -> None:
    cohort[0].refuses = "policy: no training"
    federation_id = registry.request_federation("toy", OPTIONS)
    assert wait(registry, federation_id) == "FAILED"
    detail = registry.federation(federation_id).detail
    assert "of the 3 updates needed arrived" in detail
    assert "a: policy: no training" in detail


def test_a_federation_without_enough_devices_says_who_has_how_many_rows(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    device("a", seed=1)
    until(lambda: (found := registry.devices()[0].reported) is not None and found.samples == 60, "the samples")
    federation_id = registry.request_federation("toy", OPTIONS | {"deadline_s": 0.3})
    assert wait(registry, federation_id) == "FAILED"
    assert "1 of the 3 updates needed" in registry.federation(federation_id).detail
    assert "(20 needed): a 60" in registry.federation(federation_id).detail


def test_a_device_with_a_broken_update_does_not_hold_up_the_others(registry: Registry, cohort: list[Device]) -> None:
    cohort[2].rows["numeric"][:] = np.nan  # trains to NaN
    federation_id = registry.request_federation("toy", OPTIONS | {"min_devices": 2, "rounds": 1})
    assert wait(registry, federation_id) == "SUCCEEDED"
    done = registry.federation(federation_id).rounds[0]
    assert done.participants == ("a", "b")
    assert "not finite" in done.refused["c"]


def test_what_a_device_has_not_signed_itself_is_counted_and_not_taken(registry: Registry, cohort: list[Device]) -> None:
    cohort[1].key, cohort[2].key = None, Ed25519PrivateKey.generate()  # after they were met
    options = OPTIONS | {"min_devices": 1, "rounds": 1, "deadline_s": 1.5}
    federation_id = registry.request_federation("toy", options)
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    done = registry.federation(federation_id).rounds[0]
    assert (done.participants, done.silent, done.why) == (("a",), ("b", "c"), "deadline, quorum reached")
    assert done.rejected == {"b": {"unsigned": 1}, "c": {"unsigned": 1}}


def test_another_key_than_the_first_is_noted_and_taken_once_the_first_is_forgotten(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    one = device("a")
    first = registry.fleet.keys()
    key = one.key = Ed25519PrivateKey.generate()
    one.report()
    until(lambda: any("forget-key a" in note for note in registry.devices()[0].notes), "the note")
    assert registry.fleet.keys() == first
    registry.fleet.forget_key("a")
    one.report()
    until(lambda: registry.fleet.keys().get("a") == signed.public_hex(key), "the new key")


def test_updates_sent_twice_or_again_in_a_later_round_are_counted_by_device(
    registry: Registry, cohort: list[Device]
) -> None:
    def again(offer: TaskOffer) -> None:
        for topic, payload in cohort[0].sent:
            cohort[0].client.publish(topic, payload, qos=1)

    cohort[0].on_offer = again
    federation_id = registry.request_federation("toy", OPTIONS)
    assert wait(registry, federation_id) == "SUCCEEDED"
    record = registry.federation(federation_id)
    assert [done.participants for done in record.rounds] == [("a", "b", "c")] * 3
    assert [done.rejected.get("a", {}) for done in record.rounds] == [{}, {"replayed": 1}, {"replayed": 2}]


def test_an_abandoned_round_is_written_down_and_the_next_one_goes_on(registry: Registry, cohort: list[Device]) -> None:
    cohort[0].refuses = "busy"
    federation_id = registry.request_federation("toy", OPTIONS | {"rounds": 1})
    until(lambda: len(registry.federation(federation_id).rounds) == 1, "the abandoned round")
    cohort[0].refuses = ""
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    assert [(done.round, done.state, done.why) for done in record.rounds] == [
        (1, "abandoned", "quorum impossible"),
        (2, "closed", "all answered"),
    ]
    assert record.rounds[0].metric == record.outcome["before"]["metric"], "of the model as it was"


def test_more_devices_than_needed_are_asked_and_the_slowest_is_not_waited_for(
    registry: Registry, cohort: list[Device]
) -> None:
    go = threading.Event()
    cohort[1].on_offer = waiting_for(go)
    options = OPTIONS | {"rounds": 1, "min_devices": 2, "cohort": {"target": 2, "over": 0.5}}
    federation_id = registry.request_federation("toy", options)
    state = wait(registry, federation_id)
    go.set()
    assert state == "SUCCEEDED"
    done = registry.federation(federation_id).rounds[0]
    assert (done.participants, done.why, done.asked) == (("a", "c"), "target reached", 3)


def test_asynchronous_steps_do_not_wait_for_the_slow_and_weigh_them_by_age(
    registry: Registry, cohort: list[Device]
) -> None:
    go = threading.Event()
    cohort[1].on_offer = waiting_for(go)
    options = OPTIONS | {"mode": "async", "buffer": {"size": 2}, "min_devices": 2, "rounds": 6}
    federation_id = registry.request_federation("toy", options)
    until(lambda: len(registry.federation(federation_id).rounds) >= 1, "the first step")
    go.set()
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    assert [done.round for done in record.rounds] == [1, 2, 3, 4, 5, 6]
    assert all(done.why == "buffer full" and len(done.participants) >= 2 for done in record.rounds)
    assert record.rounds[0].participants == ("a", "c")
    assert record.rounds[-1].loss < record.outcome["before"]["loss"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"mode": "async", "strategy": "scaffold"},
            "asynchronous rounds and strategies that are no plain mean",
        ),
        ({"mode": "async", "strategy": "median"}, "use fedavg, fedavgm, fedprox, fedadam or fedyogi"),
        ({"mode": "async", "buffer": {"size": 2}}, "a quorum of 3 for a buffer of 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_what_does(
    registry: Registry, server: Server, options: dict[str, Any], says: str
) -> None:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    federation_id = registry.request_federation("toy", OPTIONS | options)
    assert wait(registry, federation_id) == "FAILED"
    assert says in registry.federation(federation_id).detail


def test_the_fleet_judges_the_candidate_before_it_is_released(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    retrain.asks = True
    federation_id = registry.request_federation("toy", OPTIONS)
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    finding = retrain.findings[0]["evaluation"]
    assert (finding.devices, finding.rows, finding.rounds, finding.why) == (("a", "b", "c"), 180, 1, "")
    rows = {name: np.concatenate([one.rows[name] for one in cohort]) for name in ("numeric", "target")}
    labels = Session(retrain.released[0].data).run({"numeric": rows["numeric"]})["label"]
    assert finding.result.metric("accuracy").value == pytest.approx(np.mean(labels == rows["target"]))
    assert finding.result.gains["log_loss"].value > 0
    assert (
        record.outcome["fleet"]["evaluation"]["rows"] == 180 and record.outcome["fleet"]["evaluation"]["bytes_up"] > 0
    )
    assert len(record.rounds) == 3, "questions are no rounds"


def test_a_fleet_that_does_not_answer_leaves_the_reason(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    def no_questions(offer: TaskOffer) -> None:
        cohort[0].refuses = "policy: no evaluation" if offer.kind == "evaluation" else ""

    retrain.asks, cohort[0].on_offer = True, no_questions
    federation_id = registry.request_federation("toy", OPTIONS | {"rounds": 1, "max_abandoned": 1})
    assert wait(registry, federation_id) == "SUCCEEDED"
    finding = retrain.findings[0]["evaluation"]
    assert finding.result is None and "abandoned" in finding.why and "policy: no evaluation" in finding.why


def test_a_family_is_fitted_by_sums_over_the_fleet_and_equals_the_pooled_fit(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    federation_id = registry.request_federation("toy", OPTIONS | {"family": "LogisticRegression"})
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    assert len(record.rounds) > 3 and all(done.participants == ("a", "b", "c") for done in record.rounds)
    rows = {name: np.concatenate([one.rows[name] for one in cohort]) for name in ("numeric", "target")}
    pooled = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(
        rows["numeric"].astype(np.float64), rows["target"]
    )
    answers = Session(retrain.released[0].data).run({"numeric": rows["numeric"]})["probabilities"]
    np.testing.assert_allclose(answers, pooled.predict_proba(rows["numeric"].astype(np.float64)), atol=1e-5)


def test_a_family_is_fitted_by_masked_sums_and_the_fleet_judges_it_under_masks(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    retrain.asks = True
    federation_id = registry.request_federation("toy", OPTIONS | {"family": "LogisticRegression", "secure": {}})
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    record = registry.federation(federation_id)
    assert len(record.rounds) > 3 and all(done.participants == ("a", "b", "c") for done in record.rounds)
    assert all(done.rejected == {} for done in record.rounds)
    rows = {name: np.concatenate([one.rows[name] for one in cohort]) for name in ("numeric", "target")}
    wide = rows["numeric"].astype(np.float64)
    pooled = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(wide, rows["target"])
    session = Session(retrain.released[0].data)
    answers = session.run({"numeric": rows["numeric"]})
    np.testing.assert_allclose(answers["probabilities"], pooled.predict_proba(wide), atol=1e-5)
    finding = retrain.findings[0]["evaluation"]
    assert (finding.devices, finding.rows, finding.why) == (("a", "b", "c"), 180, "")
    accuracy = finding.result.metric("accuracy")
    assert accuracy.value == np.mean(answers["label"] == rows["target"]) and accuracy.over_devices is None
    headers = [one for device in cohort for topic, one in device.sent]
    assert len(headers) == 3 * (len(record.rounds) + 1), "each answer went out once, masked"


@pytest.mark.fault
def test_a_device_that_goes_away_is_not_waited_for_once_there_is_a_quorum(
    registry: Registry, cohort: list[Device]
) -> None:
    cohort[2].on_block = cohort[2].vanish  # in the middle of pulling the task
    federation_id = registry.request_federation("toy", OPTIONS | {"min_devices": 2, "rounds": 1})
    assert wait(registry, federation_id) == "SUCCEEDED"
    done = registry.federation(federation_id).rounds[0]
    assert done.participants == ("a", "b")


def test_a_federation_outlives_its_server(
    registry: Registry, start_server: Callable[[], Server], device: Callable[..., Device], retrain: InMemoryRetrain
) -> None:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    first = start_server()
    for number, name in enumerate(("a", "b")):
        device(name, seed=number)
    federation_id = registry.request_federation("toy", OPTIONS)
    until(lambda: "waiting for 3 devices" in registry.federation(federation_id).detail, "the federation to wait")
    first.stop()
    start_server()
    device("c", seed=2)
    assert wait(registry, federation_id) == "SUCCEEDED", registry.federation(federation_id).detail
    assert [done.participants for done in registry.federation(federation_id).rounds] == [("a", "b", "c")] * 3
    until(lambda: not registry.journals.known(), "the journal to be dropped")


def test_a_failing_preparation_ends_the_federation_and_not_the_server(
    registry: Registry, server: Server, retrain: InMemoryRetrain, device: Callable[..., Device]
) -> None:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    federation_id = registry.request_federation("toy", OPTIONS | {"momentum": 2.0})
    assert wait(registry, federation_id) == "FAILED"
    assert "momentum 2.0: choose a number" in registry.federation(federation_id).detail
    assert server.alive


def test_a_strategy_that_this_version_does_not_know_ends_the_federation_and_not_the_server(
    registry: Registry, server: Server, cohort: list[Device]
) -> None:
    unknown = FederationOptions(strategy="fedsgd", min_devices=3, deadline_s=20)  # as another version left it
    federation_id = registry.fleet.add_federation(registry.find("toy"), unknown)
    assert wait(registry, federation_id) == "FAILED"
    assert "unknown strategy 'fedsgd'; known: fedavg" in registry.federation(federation_id).detail
    following = registry.request_federation("toy", OPTIONS | {"rounds": 1})
    assert wait(registry, following) == "SUCCEEDED" and server.alive


def test_losses_of_own_models_are_kept_by_device_where_layers_stay_there_and_tell_no_more_than_noise_lets() -> None:
    told = [Update(name, 9, {}, metrics) for name, metrics in (("a", {"loss.before": 0.5}), ("b", {}))]
    fedper = FederationOptions(strategy="fedper")
    assert own_losses(told, fedper) == {"a": 0.5}
    assert own_losses(told, FederationOptions()) == {}
    assert own_losses(told, dataclasses.replace(fedper, privacy=Privacy(where="server"))) == {}
