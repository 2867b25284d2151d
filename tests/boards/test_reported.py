"""A board from what a device says of itself: real reports become profiles, anything else is refused in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.devices import DeviceProfile, add_board, find_board, own_boards, parse_board, profile_of, write_board
from edgeml.errors import ProjectError
from edgeml.pipeline.boards import add_from_file, add_from_fleet, add_local
from edgeml.registry import DeviceRecord, Registry
from edgeml_runtime.hardware import describe
from edgeml_runtime.wire.messages import Reported
from tests.boards.made_up import BOARDS, ROCK, Made, write


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_DEVICES", str(tmp_path / "own"))
    return tmp_path / "own"


def a_report(board: Made, folder, **changes):
    """Return what `edgeml-agent hardware` prints on `board`, on a 64-bit Arm system."""
    return describe(write(board, folder)) | {"arch": "aarch64", "onnxruntime": "1.23.2"} | changes


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_what_a_board_says_of_itself_agrees_with_the_profile_that_ships(name, tmp_path):
    found, shipped = profile_of(a_report(BOARDS[name], tmp_path), name="mine"), find_board(name)
    for fact in ("core", "pipeline", "cores", "frequency_ghz", "dot_product", "fp16", "l2_kb", "l3_kb", "arch"):
        assert getattr(found, fact) == getattr(shipped, fact), fact
    assert (found.fp32_flops_per_cycle, found.int8_macs_per_cycle) == (
        shipped.fp32_flops_per_cycle,
        shipped.int8_macs_per_cycle,
    )
    assert found.title == BOARDS[name].model and found.usable_ram_mb == BOARDS[name].memory_kb >> 10
    assert found.bandwidth_mb_s is None  # nobody measured it


def test_every_fact_says_who_reported_it_and_when(tmp_path):
    found = profile_of(a_report(BOARDS["raspberry-pi-4"], tmp_path, at="2026-11-26"), name="mine", by="pi-7")
    assert found.sources["cores"] == "reported by pi-7 on 2026-11-26"
    assert found.sources["core"] == "reported by pi-7 on 2026-11-26: implementer 0x41, part 0xd08"
    assert "LLVM" in found.sources["int8_macs_per_cycle"]
    assert found.runtime == "1.23"


def test_of_several_kinds_of_core_the_fastest_is_described_and_the_others_named(tmp_path):
    found = profile_of(a_report(ROCK, tmp_path), name="mine")
    assert (found.core, found.cores, found.frequency_ghz) == ("Cortex-A76", 4, 2.352)
    assert found.described == "the fastest kind of core; beside them 4 Cortex-A55 at 1.8 GHz"


def test_a_core_nobody_listed_is_kept_by_its_number_and_guessed_nothing(tmp_path):
    text = (write(BOARDS["raspberry-pi-4"], tmp_path) / "proc/cpuinfo").read_text()
    (tmp_path / "proc/cpuinfo").write_text(text.replace("0xd08", "0xfff"))
    found = profile_of(describe(tmp_path) | {"arch": "aarch64"}, name="mine")
    assert (found.core, found.pipeline, found.int8_macs_per_cycle, found.cores) == (None, None, None, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "armv7l", "bits": 32}, "32-bit armv7l system.*install a 64-bit system"),
        ({"bits": 32}, "32-bit aarch64 system"),
        ({"arch": None}, "the report has no arch"),
        ({"clusters": []}, "names no cores"),
        ({"clusters": "four"}, "clusters of the report is no list of objects"),
        ({"memory_bytes": -1}, "memory_bytes of the report is -1"),
        ({"memory_bytes": "many"}, "memory_bytes of the report is 'many'"),
        ({"memory_bytes": 1 << 70}, "usable_ram_mb is .*nothing has more than"),
        ({"at": ""}, "the report has no at"),
    ],
)
def test_a_report_that_cannot_be_right_is_refused_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ProjectError, match=message):
        profile_of(a_report(BOARDS["raspberry-pi-4"], tmp_path, **changes), name="mine")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CLUSTER = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("cores", "implementer", "part", "name", "max_frequency_khz", "caches"), JSON)
)
REPORT = st.fixed_dictionaries(
    {"arch": st.sampled_from(["aarch64", "x86_64"]) | JSON, "at": st.just("2026-01-01") | JSON},
    optional={"clusters": st.lists(CLUSTER, max_size=3) | JSON}
    | dict.fromkeys(("bits", "model", "features", "memory_bytes", "onnxruntime"), JSON),
)


@given(REPORT)
def test_any_document_is_a_board_that_can_be_kept_or_is_refused_in_words(report):
    try:
        found = profile_of(report, name="mine")
    except ProjectError as error:
        assert str(error).startswith("board 'mine': ")
    else:
        assert parse_board(write_board(found), name="mine") == found


@given(st.text(max_size=400))
def test_any_cpuinfo_is_read_without_a_crash(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("root")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(text, encoding="utf-8")
    assert json.loads(json.dumps(describe(root)))["schema"] == 1


def test_a_board_that_was_added_is_found_again_and_by_a_name_like_it(tmp_path, own_folder):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(a_report(BOARDS["raspberry-pi-5"], tmp_path)), encoding="utf-8")
    board, kept = add_from_file("lab-pi", path)
    assert kept == own_folder / "lab-pi.toml" and find_board("lab-pi") == board and own_boards() == {"lab-pi": board}
    with pytest.raises(Exception, match="did you mean 'lab-pi'"):
        find_board("lab-pie")


def test_names_that_are_taken_or_are_no_names_are_refused(tmp_path):
    board = profile_of(a_report(BOARDS["raspberry-pi-4"], tmp_path), name="mine")
    add_board(board)
    with pytest.raises(ProjectError, match=r"is there already.*--force"):
        add_board(board)
    add_board(board, force=True)
    for name, message in (("raspberry-pi-4", "ships with edgeml"), ("../x", "a name has"), ("", "a name has")):
        with pytest.raises(ProjectError, match=message):
            add_board(DeviceProfile(name=name, title="t", arch="aarch64", sources={"arch": "by hand"}))


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "[" * 100_000, "\0"])
def test_a_file_that_is_no_report_is_refused_in_words(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProjectError, match="edgeml-agent hardware"):
        add_from_file("mine", path)


def test_a_file_of_ones_own_that_is_broken_is_named_and_hinders_no_other_board(own_folder):
    own_folder.mkdir()
    (own_folder / "bad.toml").write_text("cores = ", encoding="utf-8")
    assert find_board("raspberry-pi-4").cores == 4
    with pytest.raises(ProjectError, match=r"bad\.toml: .*not TOML.*correct the file or remove it"):
        find_board("bad")


def test_this_machine_becomes_a_board_that_can_be_predicted_for():
    board, _ = add_local("here")
    assert board.arch in ("x86_64", "aarch64") and (board.cores or 0) >= 1


def test_a_device_of_the_fleet_becomes_a_board(tmp_path):
    told = {
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "machine": "aarch64",
        "cores": "4",
        "cpu_parts": "0x41/0xd0b",
        "cpu_features": "asimd asimddp asimdhp fphp",
        "max_frequency_khz": "2400000",
        "memory_bytes": "8443379712",
        "onnxruntime": "1.32.0",
    }
    reported = Reported(boot_id="b", seq=1, agent="1", board="raspberry-pi-5", hardware=told)
    registry = Registry.open(tmp_path / "registry")
    record = DeviceRecord(id="pi-7", board="raspberry-pi-5", last_seen=1.7e9, reported=reported)
    registry.fleet.save_devices([record])
    board, _ = add_from_fleet("pi-7-board", "pi-7", tmp_path / "registry")
    assert (board.core, board.cores, board.dot_product, board.frequency_ghz) == ("Cortex-A76", 4, True, 2.4)
    assert board.sources["cores"] == "reported by pi-7 on 2023-11-14"
    with pytest.raises(Exception, match=r"no device 'pi-8' has reported.*it knows pi-7"):
        add_from_fleet("b", "pi-8", tmp_path / "registry")
