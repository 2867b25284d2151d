"""Two slots, one switch, and power cuts at any instant."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.errors import AgentRefused, BadDigest, MalformedMessage, StorageFull
from edgeml_runtime.slots import GOLDENS, GRAPH, MANIFEST, Slots
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of
from edgeml_runtime.wire.signed import sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def a_release(folder: Path, name: str, *, size: int = 5000) -> tuple[bytes, dict[str, Path]]:
    """Return the signed manifest of a release whose files are in `folder`; its graph is any bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    graph, goldens = random.Random(name).randbytes(size), b"goldens of " + name.encode()
    files = {GRAPH: folder / f"{name}.onnx", GOLDENS: folder / f"{name}.safetensors"}
    files[GRAPH].write_bytes(graph)
    files[GOLDENS].write_bytes(goldens)
    variants = [
        ReleaseVariant(name=variant, graph=blob_of(data), bounds=Bounds(max_abs=1e-5, label_flips=0))
        for variant, data in (("fp32", b"somewhere else"), ("int8", graph))
    ]
    manifest = Manifest(
        model="digits",
        release=name,
        task="classification",
        created="2030-01-01T00:00:00Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=tuple(variants),
        default_variant="fp32",
        boards={"raspberry-pi-4": "int8"},
        goldens=blob_of(goldens),
    )
    return sign(manifest.to_document(), KEY), files


def serve(slots: Slots, folder: Path, name: str) -> None:
    slots.activate(slots.install(*a_release(folder, name)))


def release_of(slots: Slots) -> str:
    assert slots.current is not None
    return slots.current.manifest().release


def test_nothing_serves_before_the_first_release(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    assert (slots.current, slots.previous, slots.rollback()) == (None, None, None)


def test_a_release_serves_only_after_activation(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    envelope, files = a_release(tmp_path, "r1")
    slot = slots.install(envelope, files)
    assert slots.current is None
    slots.activate(slot)
    assert slots.current == slot
    assert (slot.variant, slot.envelope(), slot.manifest().release) == ("int8", envelope, "r1")
    assert slot.graph.read_bytes() == files[GRAPH].read_bytes()
    assert slot.goldens.read_bytes() == files[GOLDENS].read_bytes()
    slot.check()


def test_the_next_release_leaves_the_current_one_alone_until_the_switch(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    serve(slots, tmp_path, "r1")
    fresh = slots.install(*a_release(tmp_path, "r2"))
    assert release_of(slots) == "r1"
    slots.activate(fresh)
    assert release_of(slots) == "r2"
    assert slots.previous is not None
    assert slots.previous.manifest().release == "r1"


def test_going_back_restores_the_previous_release_once(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    serve(slots, tmp_path, "r1")
    serve(slots, tmp_path, "r2")
    assert slots.rollback() == slots.current
    assert release_of(slots) == "r1"
    assert slots.rollback() is None  # r2 failed: it must not come back
    assert release_of(slots) == "r1"


def test_slots_survive_a_restart(tmp_path: Path) -> None:
    serve(Slots(tmp_path / "slots"), tmp_path, "r1")
    assert release_of(Slots(tmp_path / "slots")) == "r1"


def test_the_state_folder_may_move(tmp_path: Path) -> None:
    serve(Slots(tmp_path / "slots"), tmp_path, "r1")
    (tmp_path / "slots").rename(tmp_path / "elsewhere")
    assert release_of(Slots(tmp_path / "elsewhere")) == "r1"


@pytest.mark.parametrize("left", [(), (MANIFEST,), (MANIFEST, GRAPH), (MANIFEST, GRAPH, GOLDENS)])
def test_a_half_installed_slot_is_never_activated(tmp_path: Path, left: tuple[str, ...]) -> None:
    slots = Slots(tmp_path / "slots")
    serve(slots, tmp_path, "r1")
    slot = slots.install(*a_release(tmp_path, "r2"))
    for path in slot.path.iterdir():
        if path.name not in left:
            path.unlink()
    with pytest.raises(AgentRefused, match=r"slot b .* holds no whole release"):
        slots.activate(slot)
    assert slots.rollback() is None
    assert release_of(slots) == "r1"


def test_files_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    envelope, files = a_release(tmp_path, "r1")
    other = tmp_path / "other"
    other.write_bytes(b"another file")
    with pytest.raises(BadDigest, match="no variant at all has graph"):
        slots.install(envelope, {**files, GRAPH: other})
    with pytest.raises(BadDigest, match=r"goldens\.safetensors: sha256 .* but the manifest promises"):
        slots.install(envelope, {**files, GOLDENS: other})
    with pytest.raises(BadDigest, match="no variant fp32 has graph"):
        slots.install(envelope, files, variant="fp32")
    with pytest.raises(MalformedMessage, match=r"goldens\.safetensors is not among its files"):
        slots.install(envelope, {GRAPH: files[GRAPH]})
    assert slots.previous is None


def test_a_slot_notices_that_its_disk_lied(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    slot = slots.install(*a_release(tmp_path, "r1"))
    data = bytearray(slot.graph.read_bytes())
    data[100] ^= 1
    slot.graph.unlink()
    slot.graph.write_bytes(data)
    with pytest.raises(BadDigest, match=r"model\.onnx"):
        slot.check()


def test_a_slot_of_another_folder_is_not_activated(tmp_path: Path) -> None:
    slot = Slots(tmp_path / "one").install(*a_release(tmp_path, "r1"))
    with pytest.raises(AgentRefused):
        Slots(tmp_path / "two").activate(slot)


@pytest.mark.fault
def test_a_full_disk_leaves_the_current_release_serving(small_disk: Path, tmp_path: Path) -> None:
    slots = Slots(small_disk / "slots")
    serve(slots, tmp_path, "r1")
    with pytest.raises(StorageFull, match=r"release r2 needs 2,000,013 bytes .* was not touched"):
        slots.install(*a_release(tmp_path, "r2", size=2_000_000))
    assert release_of(slots) == "r1"
    assert slots.current is not None
    slots.current.check()
    assert slots.previous is None
    serve(slots, tmp_path, "r3")
    assert release_of(slots) == "r3"


CHILD = """
import itertools, json, sys
from pathlib import Path
from edgeml_runtime.slots import Slots
slots = Slots(Path(sys.argv[1]))
releases = [(Path(name).read_bytes(), {k: Path(v) for k, v in rest.items()}) for name, rest in json.loads(sys.argv[2])]
print("ready", flush=True)
for step in itertools.count():
    slots.activate(slots.install(*releases[step % len(releases)]))
    if step % 5 == 4:
        slots.rollback()
"""


@pytest.mark.fault
def test_a_kill_at_any_instant_leaves_a_whole_release_serving(tmp_path: Path) -> None:
    rng, root = random.Random(23), tmp_path / "slots"
    arguments = []
    for name in ("r1", "r2", "r3"):
        envelope, files = a_release(tmp_path, name, size=300_000)
        (tmp_path / f"{name}.json").write_bytes(envelope)
        arguments.append([str(tmp_path / f"{name}.json"), {key: str(path) for key, path in files.items()}])
    serve(Slots(root), tmp_path / "first", "r0")
    seen = set()
    for _ in range(15):
        command = [sys.executable, "-c", CHILD, str(root), json.dumps(arguments)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.08))
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=60)
        child.stdout.close()
        slots = Slots(root)
        assert slots.current is not None
        slots.current.check()
        if slots.previous is not None:
            slots.previous.check()
        seen.add(release_of(slots))
    assert len(seen) > 1
    serve(Slots(root), tmp_path, "r4")
    assert release_of(Slots(root)) == "r4"
