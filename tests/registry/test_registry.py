"""The registry on a real disk, from one process and from several."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml.artifacts import Bundle
from edgeml.errors import FleetError, NotFound, ServerUnavailable, UserError, VerificationError
from edgeml.registry import (
    DeviceRecord,
    FederationOptions,
    Heartbeat,
    Registry,
    Release,
    RolloutOptions,
    RoundRecord,
)
from edgeml.registry.records import RUNNING, SUCCEEDED
from edgeml.rollout import Progress
from edgeml.telemetry import Telemetry
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of
from edgeml_runtime.wire.messages import JobStatus, Metrics, Reported


def a_bundle(release: str = "ab12ab12ab12", model: str = "digits") -> Bundle:
    graph, goldens = f"graph of {release}".encode(), b"goldens"
    manifest = Manifest(
        model=model,
        release=release,
        task="classification",
        created="2026-01-02T03:04:05Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=(ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=Bounds(max_abs=1e-4, label_flips=0)),),
        default_variant="fp32",
        boards={},
        goldens=blob_of(goldens),
    )
    return Bundle(manifest, {blob_of(graph).digest: graph, blob_of(goldens).digest: goldens})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


def add(registry: Registry, release: str, model: str = "digits") -> Release:
    return registry.add_release(a_bundle(release, model), summary={"release": release}, run_dir="/runs/1")


def fleet_of(registry: Registry, **boards: str) -> None:
    registry.fleet.save_devices(DeviceRecord(id=name, board=board) for name, board in boards.items())


def test_releases_of_a_model_are_numbered_from_one_and_added_once(registry: Registry) -> None:
    numbers = [add(registry, name).number for name in ("aa00aa00aa00", "bb00bb00bb00", "aa00aa00aa00")]
    assert numbers == [1, 2, 1]
    assert add(registry, "cc00cc00cc00", model="iris").number == 1
    assert [release.number for release in registry.releases("digits")] == [2, 1]
    assert registry.has_release("digits", "aa00aa00aa00")
    assert not registry.has_release("iris", "aa00aa00aa00")


def test_a_release_brings_its_bundle_back_signed_by_this_registry(registry: Registry) -> None:
    release = add(registry, "ab12ab12ab12")
    assert registry.bundle_of(release) == a_bundle()
    envelope = registry.blob(release.manifest)
    assert len(envelope) == release.manifest_bytes
    assert signed.verify(envelope, [registry.public_key_hex()])["release"] == "ab12ab12ab12"


@pytest.mark.parametrize(
    ("name", "number"), [("digits", 3), ("digits@1", 1), ("digits@bb", 2), ("digits@ab1200000000", 3)]
)
def test_a_release_is_found_by_model_number_or_digits(registry: Registry, name: str, number: int) -> None:
    for release in ("aa0000000000", "bb0000000000", "ab1200000000"):
        add(registry, release)
    assert registry.find(name).number == number


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digit", "no model 'digit'; did you mean 'digits'"),
        ("zzz", "no model 'zzz'; known: digits"),
        ("digits@9", r"'digits@9' names no release; known: digits@2 \(aa22"),
        ("digits@aa", "'digits@aa' names 2 releases, give more digits"),
    ],
)
def test_a_release_that_is_not_found_is_answered_with_what_is_known(registry: Registry, name: str, says: str) -> None:
    add(registry, "aa1100000000")
    add(registry, "aa2200000000")
    with pytest.raises(NotFound, match=says):
        registry.find(name)


def test_an_empty_registry_says_how_to_fill_it(registry: Registry) -> None:
    with pytest.raises(NotFound, match="is empty: run `edgeml build` first"):
        registry.find("digits")


def test_a_flipped_bit_in_a_blob_is_found_when_it_is_read(registry: Registry) -> None:
    digest = registry.put_blob(b"weights")
    registry.blob_path(digest).write_bytes(b"weighty")
    with pytest.raises(VerificationError, match=rf"blob {digest[:12]} .*\(7 bytes\): it was truncated"):
        registry.blob(digest)


def test_a_truncated_blob_is_mended_by_putting_it_again(registry: Registry) -> None:
    digest = registry.put_blob(b"weights")
    registry.blob_path(digest).write_bytes(b"wei")
    registry.put_blob(b"weights")
    assert registry.blob(digest) == b"weights"


def test_the_signing_key_is_made_once_and_only_its_owner_reads_it(registry: Registry) -> None:
    public = registry.public_key_hex()
    assert stat.S_IMODE((registry.root / "keys/signing.key").stat().st_mode) == 0o600
    assert Registry.open(registry.root).public_key_hex() == public


def test_a_key_that_is_no_key_is_not_replaced(registry: Registry) -> None:
    path = registry.root / "keys/signing.key"
    path.parent.mkdir()
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes are no Ed25519 key"):
        registry.signing_key()
    assert path.read_bytes() == b"short"


def test_a_file_where_the_registry_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("a file")
    with pytest.raises(UserError, match="no registry can be opened at"):
        Registry.open(tmp_path / "registry")


def test_an_index_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"these are not the pages of a database" * 100)
    with pytest.raises(UserError, match="not a database"):
        Registry.open(tmp_path)


def test_a_device_comes_back_as_it_was_saved_and_the_last_save_wins(registry: Registry) -> None:
    record = DeviceRecord(
        id="pi",
        board="raspberry-pi-4",
        online=True,
        boot_id="b1",
        last_seen=12.5,
        reported=Reported(boot_id="b1", seq=3, agent="0.1.0", board="raspberry-pi-4", samples=7),
        telemetry=Telemetry(now=Metrics(boot_id="b1", seq=1, uptime_s=2.0, predictions=5)),
        notes=("two agents",),
    )
    registry.fleet.save_devices([DeviceRecord(id="pi"), DeviceRecord(id="other")])
    registry.fleet.save_devices([record])
    assert registry.devices() == [DeviceRecord(id="other"), record]


def test_assignment_numbers_grow_over_restarts(registry: Registry) -> None:
    assert [registry.fleet.next_seq("a"), registry.fleet.next_seq("a"), registry.fleet.next_seq("b")] == [1, 2, 1]
    assert Registry.open(registry.root).fleet.next_seq("a") == 3


def test_a_rollout_is_a_row_that_the_server_works_on(registry: Registry) -> None:
    release = add(registry, "ab12ab12ab12")
    fleet_of(registry, a="raspberry-pi-4", b="raspberry-pi-5")
    rollout_id = registry.request_rollout("digits", None, "board:raspberry-pi-5", deadline_s=30)
    record = registry.rollout(rollout_id)
    assert (record.release, record.state, record.devices) == (release.release, "REQUESTED", {"b": {"state": "WAITING"}})
    assert record.options == RolloutOptions(deadline_s=30.0)
    assert [found.id for found in registry.fleet.rollouts(unfinished=True)] == [rollout_id]
    registry.fleet.update_rollout(
        rollout_id, state=SUCCEEDED, devices={"b": Progress(state="SUCCEEDED")}, detail="done"
    )
    ended = registry.rollout(rollout_id)
    assert (ended.is_over, ended.detail, ended.devices["b"]["state"]) == (True, "done", "SUCCEEDED")
    assert ended.ended is not None
    assert registry.fleet.rollouts(unfinished=True) == []


@pytest.mark.parametrize(
    ("selector", "error", "says"),
    [
        ("board:toaster", FleetError, r"'board:toaster' is nobody: known devices: pi-one \(raspberry-pi-4\)"),
        ("pi-on", NotFound, "no device 'pi-on'; did you mean 'pi-one'"),
        (" , ", FleetError, "is nobody"),
    ],
)
def test_a_deploy_to_nobody_is_refused_with_who_there_is(
    registry: Registry, selector: str, error: type[Exception], says: str
) -> None:
    add(registry, "ab12ab12ab12")
    fleet_of(registry, **{"pi-one": "raspberry-pi-4"})
    with pytest.raises(error, match=says):
        registry.request_rollout("digits", None, selector)
    assert registry.fleet.rollouts() == []


def test_a_deploy_to_all_of_no_devices_says_how_to_get_one(registry: Registry) -> None:
    add(registry, "ab12ab12ab12")
    with pytest.raises(FleetError, match=r"no device has reported .* start one with `edgeml-agent run`"):
        registry.request_rollout("digits", None, "all")


def test_a_federation_by_an_unknown_strategy_is_refused_with_those_there_are(registry: Registry) -> None:
    add(registry, "ab12ab12ab12")
    with pytest.raises(UserError, match=r"unknown strategy 'fedsgd'; known: fedavg, .*, ditto"):
        registry.request_federation("digits", {"strategy": "fedsgd"})
    assert registry.fleet.federations() == []


def test_a_federation_is_a_row_with_its_history(registry: Registry) -> None:
    add(registry, "ab12ab12ab12")
    federation_id = registry.request_federation("digits", {"rounds": 3, "learning_rate": 0.1})
    record = registry.federation(federation_id)
    assert record.options == FederationOptions(rounds=3, learning_rate=0.1)
    done = RoundRecord(
        round=1,
        participants=("a",),
        refused={"b": "5 rows"},
        rows=9,
        metric=0.5,
        loss=1.0,
        bytes_up=1,
        bytes_down=2,
        seconds=0.1,
    )
    grown = record.__class__(**{**record.__dict__, "rounds": (done,), "state": RUNNING})
    registry.fleet.update_federation(grown)
    assert registry.federation(federation_id) == grown


def test_an_option_that_does_not_exist_is_named(registry: Registry) -> None:
    add(registry, "ab12ab12ab12")
    with pytest.raises(UserError, match="unknown field 'epochs'; known: rounds"):
        registry.request_federation("digits", {"epochs": 3})


def test_an_unknown_rollout_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no rollout 'roll-0'"):
        registry.rollout("roll-0")


def test_a_server_is_alive_as_long_as_it_says_so(registry: Registry) -> None:
    with pytest.raises(ServerUnavailable, match="start one with `edgeml server`"):
        registry.server_alive()
    beat = Heartbeat(pid=7, host="127.0.0.1", port=1883, time=time.time())
    registry.fleet.beat(beat)
    assert registry.server_alive() == beat
    with pytest.raises(ServerUnavailable, match=r"pid 7, broker 127.0.0.1:1883.* no sign of life for 60 s"):
        registry.server_alive(beat.time + 60)
    registry.fleet.stop_beating(7)
    with pytest.raises(ServerUnavailable, match="no server works"):
        registry.server_alive()


WRITER = """
import sys
from pathlib import Path
from edgeml.registry import Registry, DeviceRecord
root, name = Path(sys.argv[1]), sys.argv[2]
registry = Registry.open(root)
seqs = []
for number in range(40):
    seqs.append(registry.fleet.next_seq("shared"))
    registry.fleet.save_devices([DeviceRecord(id=f"{name}-{number}")])
    registry.put_blob(b"the same bytes %d" % number)
print(registry.public_key_hex(), *seqs)
"""


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(root), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    outputs = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len({output[0] for output in outputs}) == 1  # one signing key, whoever was first
    seqs = sorted(int(seq) for output in outputs for seq in output[1:])
    assert seqs == list(range(1, 121))
    assert len(Registry.open(root).devices()) == 120


def test_a_job_status_survives_the_index_with_all_its_numbers(registry: Registry) -> None:
    job = JobStatus(
        job="roll-1", state="FAILED", step="PROBING", progress=1.0, reason="ModelRefused", detail="max_abs 0.3"
    )
    reported = Reported(boot_id="b", seq=1, agent="0.1.0", board="", job=job)
    registry.fleet.save_devices([DeviceRecord(id="pi", reported=reported)])
    assert registry.devices()[0].reported == reported
