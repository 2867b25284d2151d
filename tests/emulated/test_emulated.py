"""The device's truth: the agent's own wheel on Debian for arm64, on the cores of three boards, under qemu-user."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeml.artifacts import Bundle
from edgeml.demo.digits import Share
from edgeml.registry import Release
from edgeml_runtime.doctor import CHECKS
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import blob_of
from tests.autodiff import learners
from tests.emulated.board_root import BOARDS, Emulated, resolve
from tests.emulated.fleet import Device, Fleet, bounds, here, until

pytestmark = pytest.mark.emulated
ROOT = Path(__file__).resolve().parents[2]
CORES = {"raspberry-pi-zero-2w": "cortex-a53", "raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}
FP32_RELATIVE = 1e-5  # of the largest answer: other kernels add in another order
TRAINED_RELATIVE = 1e-4  # after up to six steps
INT8 = "int8-static-u8s8"
ASIMDDP, SVE = 1 << 20, 1 << 22  # AT_HWCAP of arm64 Linux: dot products, and what no Raspberry Pi has
HWCAP = "import ctypes; print(ctypes.CDLL(None).getauxval(16))"
LOOK = """
import json, os, platform, subprocess, sys
import edgeml_runtime.ort_session as session
child = subprocess.run([sys.executable, "-c", "import os; print(os.uname().machine)"], capture_output=True, text=True)
print(json.dumps({"machine": platform.machine(), "onnxruntime": session.VERSION, "child": child.stdout.strip(),
                  "from": session.__file__, "cores": os.cpu_count(), "bits": platform.architecture()[0]}))
"""
REPLAY = """
import sys, numpy as np
from edgeml_runtime.session import Session
rows = np.load(sys.argv[1])
np.savez(sys.argv[2], **{path: Session(path).run({"image": rows})["scores"] for path in sys.argv[3:]})
"""


def pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)[name]


def test_every_board_runs_as_its_own_core_and_never_as_max(board: Emulated, alone: Device) -> None:
    assert board.cpu == CORES[board.profile.name]
    for python in (board.python, board.dies):
        words = python.read_text().split()
        assert words[words.index("-cpu") + 1] == board.cpu
    flags = int(alone.run_python("-c", HWCAP).stdout)
    assert bool(flags & ASIMDDP) == board.profile.dot_product and not flags & SVE


def test_the_agents_wheel_installs_beside_the_pinned_wheels_and_imports(board: Emulated, alone: Device) -> None:
    done = alone.run_python("-c", LOOK)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["onnxruntime"] == pinned("onnxruntime")
    assert (told["machine"], told["child"], told["bits"]) == ("aarch64", "aarch64", "64bit")
    assert told["cores"] == board.profile.cores
    assert Path(told["from"]).is_relative_to(board.root.parent / "lib")  # not the folder we develop in
    assert not list(alone.home.rglob("*.onnxruntime")) and not list(alone.home.rglob("deviceid"))


def test_the_doctor_finds_a_board_healthy_but_for_what_is_so_on_every_pi(fleet: Fleet, board: Emulated) -> None:
    done = fleet.devices[board.profile.name].command("doctor", "--json")
    assert done.stdout, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert list(checks) == list(CHECKS)
    found = {name: check["level"] for name, check in checks.items() if check["level"] != "ok"}
    assert done.returncode == 0 and found.pop("memory limits") == "warn", checks
    found.pop("threads", None)  # warns where this machine has fewer processors than the board
    assert found == {}, checks
    assert board.profile.core in checks["architecture"]["detail"]
    assert board.profile.title in checks["architecture"]["detail"]
    assert checks["temperature"]["detail"] == "48.3 C"


def test_the_doctor_names_the_onnxruntime_that_dies_on_old_cores(board: Emulated, tmp_path: Path) -> None:
    device = Device("dies", board, folder=tmp_path / "dies", dies=True)
    done = device.command("doctor", "--json")
    assert done.returncode == 1 and done.stderr == ""  # not enrolled; and no trace, whatever the child did
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    version, loaded = checks["onnxruntime"], checks["import"]
    assert "1.21.0" in version["detail"] and "pip install --upgrade 'onnxruntime>=" in version["fix"]
    if board.profile.dot_product:  # the same wheel works where there are dot products
        assert (version["level"], loaded["level"]) == ("warn", "ok")
        return
    assert (version["level"], loaded["level"]) == ("fail", "fail")
    assert loaded["detail"].startswith(f"SIGILL: illegal instruction: {board.profile.core} lacks an instruction")
    assert "onnxruntime 1.21.0" in loaded["detail"] and loaded["fix"] == version["fix"]
    assert str(board.dies) in loaded["fix"]  # into the very Python that has it


@pytest.mark.parametrize("variant", ["fp32", INT8])
def test_a_bundle_is_shipped_proved_and_answers_as_on_x86(
    fleet: Fleet, conv: Release, images: np.ndarray, variant: str
) -> None:
    release = fleet.pinned(conv, variant)
    ended = fleet.ended(fleet.ship(release, *fleet.devices.values()))
    assert {name: entry["state"] for name, entry in ended.items()} == dict.fromkeys(BOARDS, "SUCCEEDED"), ended
    bundle = fleet.registry.bundle_of(release)
    expected = here(bundle, variant, images)
    allowed = FP32_RELATIVE * np.abs(expected).max() if variant == "fp32" else bounds(bundle.manifest, variant)
    for name, device in fleet.devices.items():
        running = device.running()
        assert (running["release"], running["variant"]) == (release.release, variant), name
        answers = device.predict(images)
        assert np.abs(answers - expected).max() <= allowed, name
        assert np.mean(answers.argmax(axis=1) == expected.argmax(axis=1)) >= 0.95, name


def test_every_variant_of_the_bundle_answers_as_on_x86(
    fleet: Fleet, conv: Release, images: np.ndarray, board: Emulated, tmp_path: Path
) -> None:
    bundle = fleet.registry.bundle_of(conv)
    np.save(tmp_path / "rows.npy", images)
    paths = {variant.name: tmp_path / f"{variant.name}.onnx" for variant in bundle.manifest.variants}
    for variant in bundle.manifest.variants:
        paths[variant.name].write_bytes(bundle.blobs[variant.graph.digest])
    device = fleet.devices[board.profile.name]
    done = device.run_python("-c", REPLAY, tmp_path / "rows.npy", tmp_path / "answers.npz", *paths.values())
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    off = {name: np.abs(answers[str(path)] - here(bundle, name, images)).max() for name, path in paths.items()}
    print(board.cpu, {name: f"{far:.2e}" for name, far in off.items()})
    assert len(off) >= 3 and all(far <= bounds(bundle.manifest, name) for name, far in off.items()), off


def test_a_release_that_fails_its_goldens_leaves_the_old_one_serving(
    fleet: Fleet, conv: Release, images: np.ndarray
) -> None:
    old, devices = fleet.pinned(conv, "fp32"), fleet.devices.values()
    assert {entry["state"] for entry in fleet.ended(fleet.ship(old, *devices)).values()} == {"SUCCEEDED"}
    before = {device.name: device.predict(images) for device in devices}
    bad = _lying(fleet, old)
    rollouts = [fleet.ship(bad, device) for device in devices]  # one each: a failed canary spares the others
    for device, rollout in zip(devices, rollouts, strict=True):
        entry = fleet.ended(rollout)[device.name]
        assert entry["state"] == "REJECTED", entry
        assert "OutOfBounds: answers are 1 off the recorded ones" in entry["detail"], entry
        assert device.running()["release"] == old.release
        assert np.array_equal(device.predict(images), before[device.name])


def _lying(fleet: Fleet, release: Release) -> Release:
    """Return a release whose goldens say what its graph does not answer."""
    bundle = fleet.registry.bundle_of(release)
    goldens = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    goldens["fp32.scores"] = goldens["fp32.scores"] + 1
    packed = tensors.pack(goldens)
    blob = blob_of(packed)
    manifest = dataclasses.replace(bundle.manifest, goldens=blob, release=blob.digest[: len(release.release)])
    return fleet.add(Bundle(manifest, {**bundle.blobs, blob.digest: packed}))


def test_a_release_under_which_the_agent_dies_is_rolled_back(fleet: Fleet, conv: Release, images: np.ndarray) -> None:
    device = fleet.devices["raspberry-pi-4"]
    old, new = fleet.pinned(conv, "fp32"), fleet.pinned(conv, INT8)
    assert fleet.ended(fleet.ship(old, device))[device.name]["state"] == "SUCCEEDED"
    before = device.predict(images)
    rollout = fleet.ship(new, device, soak_predictions=1_000_000)
    for _ in range(4):
        until(lambda: ((device.status() or {}).get("job") or {}).get("step") == "SOAKING", "the soak")
        assert device.running()["release"] == new.release
        device.kill()
        device.start()
    entry = fleet.ended(rollout)[device.name]
    assert entry["state"] == "ROLLED_BACK" and "died again and again" in entry["detail"], entry
    assert device.running()["release"] == old.release
    assert np.array_equal(device.predict(images), before)


def test_a_federated_round_over_three_cores_ends_in_a_verified_release(
    fleet: Fleet, digits: tuple[Release, list[Share]]
) -> None:
    release, shares = digits
    ended = fleet.ended(fleet.ship(release, *fleet.devices.values()))
    assert {entry["state"] for entry in ended.values()} == {"SUCCEEDED"}, ended
    for device, share in zip(fleet.devices.values(), shares, strict=True):
        device.call("/samples", {"rows": share.rows(), "targets": [str(digit) for digit in share.digits]})
    count = sum(len(share.digits) for share in shares)
    until(
        lambda: sum(d.reported.samples for d in fleet.registry.devices() if d.reported) == count,
        "the samples to be reported",
    )
    options = ("--rounds", 1, "--min-devices", len(BOARDS), "--local-epochs", 2, "--deadline", 200, "--wait")
    told = fleet.edgeml("federate", "digits", *options)
    (done,) = told["rounds"]
    assert sorted(done["participants"]) == sorted(BOARDS) and done["refused"] == {}, told
    assert told["after"] > told["before"] and told["released"], told


def test_the_pins_have_wheels_for_the_next_debians_python_too() -> None:
    """Raspberry Pi OS 13 has Python 3.13; an installation there must not end in a compiler."""
    wheels = resolve("3.13")
    assert f"onnxruntime-{pinned('onnxruntime')}-cp313-cp313" in " ".join(wheels)
    assert all("aarch64" in name or name.endswith("-none-any.whl") for name in wheels), wheels


def test_the_command_prints_what_it_made(emulated: dict[str, Emulated]) -> None:
    command = [sys.executable, "-m", "tests.emulated.board_root"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{board.cpu} {board.python}" for board in emulated.values()]


TRAIN = """
import sys, numpy as np
from pathlib import Path
from edgeml_runtime.session import Session
for path in map(Path, sys.argv[2:]):
    kept = np.load(path.with_suffix(".npz"))
    found = Session(path).run({key[3:]: kept[key] for key in kept.files if key.startswith("in.")})
    for key, array in found.items():
        wanted = kept["out." + key]
        assert array.shape == wanted.shape and array.dtype == wanted.dtype, (path.stem, key)
        far = np.abs(array - wanted).max(initial=0) / max(float(np.abs(wanted).max(initial=0)), 1e-3)
        assert far < float(sys.argv[1]), (path.stem, key, float(far))
    print(path.stem)
"""


def test_training_graphs_learn_as_on_x86(board: Emulated, alone: Device, tmp_path: Path) -> None:
    for name in learners.NETS:
        learners.keep(tmp_path, name)
    paths = sorted(tmp_path.glob("*.onnx"))
    done = alone.run_python("-c", TRAIN, TRAINED_RELATIVE, *paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [path.stem for path in paths] and len(paths) == 2 * len(learners.NETS)
