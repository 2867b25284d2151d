"""Blocks arriving in any order, damaged, twice or never, and processes that die in between."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml_runtime.download import ASK_AGAIN_S, JITTER, LONGEST_S, Receiver, Window, sweep
from edgeml_runtime.errors import BadDigest, MalformedMessage, StorageFull
from edgeml_runtime.wire import blocks
from edgeml_runtime.wire.blocks import BLOCK_BYTES, WINDOW_BLOCKS, Block, digest_of

DATA = random.Random(3).randbytes(20 * BLOCK_BYTES + 1234)
PARTS = blocks.split(DATA)
DIGEST, HASHES = digest_of(DATA), tuple(digest_of(part) for part in PARTS)
PREFIX = bytes.fromhex(DIGEST[:16])


def a_receiver(folder: Path, *, hashes: tuple[str, ...] = HASHES) -> Receiver:
    return Receiver(folder, digest=DIGEST, size=len(DATA), hashes=hashes)


def block(index: int) -> Block:
    return Block(PREFIX, index, PARTS[index])


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << (bit % 8)
    return bytes(changed)


class Download(RuleBasedStateMachine):
    """Whatever happens between opening and finishing, no wrong byte is believed and the end is right."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.receiver = a_receiver(self.folder)
        self.have: set[int] = set()

    @rule(index=st.integers(0, len(PARTS) - 1))
    def deliver(self, index: int) -> None:
        assert self.receiver.accept(block(index)) is (index not in self.have)
        self.have.add(index)

    @rule(indices=st.permutations(range(len(PARTS))), count=st.integers(1, len(PARTS)))
    def deliver_out_of_order(self, indices: list[int], count: int) -> None:
        for index in indices[:count]:
            self.deliver(index)

    @rule(index=st.integers(0, len(PARTS) - 1), bit=st.integers(0, 8 * BLOCK_BYTES))
    def deliver_damaged(self, index: int, bit: int) -> None:
        assert not self.receiver.accept(Block(PREFIX, index, flipped(PARTS[index], bit)))

    @rule(index=st.integers(0, len(PARTS) - 1), data=st.binary(max_size=50))
    def deliver_garbage(self, index: int, data: bytes) -> None:
        assert not self.receiver.accept(Block(PREFIX, index, data))
        assert not self.receiver.accept(Block(data[:8].ljust(8, b"?"), index, PARTS[index]))
        assert not self.receiver.accept(Block(PREFIX, len(PARTS) + index, PARTS[index]))

    @rule()
    def stop_and_resume(self) -> None:
        self.receiver.close()
        self.receiver = a_receiver(self.folder)
        assert set(range(len(PARTS))) - self.receiver.missing == self.have

    @rule()
    def die_and_resume(self) -> None:
        self.receiver._close_file()  # as the kernel does for a killed process: nothing is synced
        self.receiver = a_receiver(self.folder)
        self._forget_at_most_what_was_here()

    @rule(bits=st.binary(max_size=4))
    def resume_with_a_lying_bitmap(self, bits: bytes) -> None:
        self.receiver.close()
        (self.folder / f"{DIGEST}.bitmap").write_bytes(bits)
        self.receiver = a_receiver(self.folder)
        self.have = set(range(len(PARTS))) - self.receiver.missing  # it may tell the truth; the invariant decides

    @rule(bit=st.integers(0, 8 * len(DATA) - 1))
    def resume_with_a_flipped_bit(self, bit: int) -> None:
        self.receiver.close()
        path = self.folder / f"{DIGEST}.part"
        path.write_bytes(flipped(path.read_bytes(), bit))
        self.receiver = a_receiver(self.folder)
        assert bit // 8 // BLOCK_BYTES in self.receiver.missing
        self._forget_at_most_what_was_here()

    @rule(size=st.integers(0, len(DATA)))
    def resume_with_a_truncated_part(self, size: int) -> None:
        self.receiver.close()
        os.truncate(self.folder / f"{DIGEST}.part", size)
        self.receiver = a_receiver(self.folder)
        kept = {i for i in self.have if i * BLOCK_BYTES + len(PARTS[i]) <= size}
        assert kept <= set(range(len(PARTS))) - self.receiver.missing
        self._forget_at_most_what_was_here()

    def _forget_at_most_what_was_here(self) -> None:
        here = set(range(len(PARTS))) - self.receiver.missing
        assert here <= self.have
        self.have = here

    @invariant()
    def what_is_claimed_is_right(self) -> None:
        part = (self.folder / f"{DIGEST}.part").read_bytes()
        assert len(part) == len(DATA)
        for index in self.have:
            assert part[index * BLOCK_BYTES :][: len(PARTS[index])] == PARTS[index]
        assert self.receiver.progress == pytest.approx(len(self.have) / len(PARTS))

    def teardown(self) -> None:
        if not hasattr(self, "receiver"):
            return
        for index in sorted(self.receiver.missing):
            assert self.receiver.accept(block(index))
        assert self.receiver.finish().read_bytes() == DATA
        assert [path.name for path in self.folder.iterdir()] == [DIGEST]
        shutil.rmtree(self.folder)


TestDownload = Download.TestCase
TestDownload.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)

CHILD = """
import random, sys, time
from pathlib import Path
from edgeml_runtime.download import Receiver
from edgeml_runtime.wire import blocks
folder, source = map(Path, sys.argv[1:])
data = source.read_bytes()
parts = blocks.split(data)
digest = blocks.digest_of(data)
receiver = Receiver(folder, digest=digest, size=len(data), hashes=[blocks.digest_of(part) for part in parts])
print(len(receiver.missing), flush=True)
wanted = list(receiver.missing)
random.shuffle(wanted)
for index in wanted:
    time.sleep(0.001)
    receiver.accept(blocks.decode(blocks.encode(digest, index, parts[index])))
print(receiver.finish(), flush=True)
"""


@pytest.mark.fault
def test_a_download_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(11)
    data = rng.randbytes(200 * BLOCK_BYTES + 7)
    source, folder = tmp_path / "source", tmp_path / "blobs"
    source.write_bytes(data)
    path, kills, asked = folder / digest_of(data), 0, []
    for _ in range(60):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(source)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        asked.append(int(child.stdout.readline()))
        try:
            child.wait(timeout=rng.uniform(0.02, 0.12) if kills < 8 else 60)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait(timeout=60)
            kills += 1
        child.stdout.close()
        if path.exists():
            break
    assert kills >= 1
    assert path.read_bytes() == data
    assert asked == sorted(asked, reverse=True)  # nothing that was safe is asked for again
    assert asked[-1] < 200 or len(asked) == 1


def test_a_whole_blob_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(DATA)
    receiver = a_receiver(tmp_path)
    assert (receiver.missing, receiver.progress) == (set(), 1.0)
    assert receiver.finish() == tmp_path / DIGEST


def test_a_finished_blob_that_the_disk_damaged_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(flipped(DATA, 12345))
    receiver = a_receiver(tmp_path)
    assert len(receiver.missing) == len(PARTS)


def test_a_crash_between_rename_and_clean_up_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(DATA)
    (tmp_path / f"{DIGEST}.bitmap").write_bytes(b"\xff\xff\xff")
    a_receiver(tmp_path).finish()
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST]


def test_without_block_hashes_a_damaged_blob_is_caught_at_the_end_and_dropped(tmp_path: Path) -> None:
    receiver = a_receiver(tmp_path, hashes=())
    for index in range(len(PARTS)):
        data = flipped(PARTS[index], 99) if index == 4 else PARTS[index]
        assert receiver.accept(Block(PREFIX, index, data))
    with pytest.raises(BadDigest, match=f"blob {DIGEST[:12]}: 984,274 bytes arrived with sha256"):
        receiver.finish()
    assert list(tmp_path.iterdir()) == []


def test_without_block_hashes_nothing_partial_is_believed(tmp_path: Path) -> None:
    with a_receiver(tmp_path, hashes=()) as receiver:
        for index in range(5):
            receiver.accept(block(index))
    with a_receiver(tmp_path, hashes=()) as again:
        assert len(again.missing) == len(PARTS)
        for index in range(len(PARTS)):
            again.accept(block(index))
    whole = a_receiver(tmp_path, hashes=())
    assert whole.missing == set()
    assert whole.finish().read_bytes() == DATA


def test_a_blob_of_one_block_is_checked_by_its_own_digest(tmp_path: Path) -> None:
    data = b"a small manifest"
    receiver = Receiver(tmp_path, digest=digest_of(data), size=len(data))
    prefix = bytes.fromhex(digest_of(data)[:16])
    assert not receiver.accept(Block(prefix, 0, b"a small Manifest"))
    assert receiver.accept(Block(prefix, 0, data))
    assert receiver.finish().read_bytes() == data


def test_finishing_early_says_how_much_is_missing(tmp_path: Path) -> None:
    receiver = a_receiver(tmp_path)
    receiver.accept(block(0))
    with pytest.raises(BadDigest, match="20 of its 21 blocks are missing"):
        receiver.finish()
    assert len(receiver.missing) == 20


@pytest.mark.parametrize(
    ("digest", "size", "hashes"),
    [("../../etc/passwd", 9, ()), (DIGEST.upper(), 9, ()), (DIGEST, 0, ()), (DIGEST, -1, ()), (DIGEST, 9, ("a", "b"))],
)
def test_what_cannot_be_a_blob_is_refused(tmp_path: Path, digest: str, size: int, hashes: tuple[str, ...]) -> None:
    with pytest.raises(MalformedMessage, match="blob"):
        Receiver(tmp_path, digest=digest, size=size, hashes=hashes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault
def test_a_full_disk_is_found_before_the_first_block(small_disk: Path) -> None:
    old = small_disk / digest_of(b"old")
    old.write_bytes(b"old")
    data = bytes(2 << 20)
    with pytest.raises(StorageFull, match=r"needs 2,097,152 bytes and .* has 1,0\d\d,\d\d\d free"):
        Receiver(small_disk, digest=digest_of(data), size=len(data))
    assert [path.name for path in small_disk.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"


@pytest.mark.fault
def test_a_disk_that_fills_up_meanwhile_does_not_stop_a_download(small_disk: Path) -> None:
    """The space was taken at the start, so another writer cannot take it away."""
    data = random.Random(1).randbytes(10 * BLOCK_BYTES)
    receiver = Receiver(small_disk, digest=digest_of(data), size=len(data))
    with pytest.raises(OSError, match="No space left"), (small_disk / "log").open("wb") as log:
        log.write(bytes(2 << 20))
    for index, part in enumerate(blocks.split(data)):
        assert receiver.accept(Block(bytes.fromhex(digest_of(data)[:16]), index, part))
    assert receiver.finish().read_bytes() == data


def test_sweeping_keeps_what_is_named_and_what_is_not_ours(tmp_path: Path) -> None:
    with a_receiver(tmp_path):
        kept = tmp_path / digest_of(b"kept")
        kept.write_bytes(b"kept")
        (tmp_path / "README").write_text("not ours")
    assert sweep(tmp_path, {kept.name}) >= len(DATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept.name, "README"])
    assert sweep(tmp_path / "absent", ()) == 0


def indices(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [index for first, end in ranges for index in range(first, end)]


def test_a_window_asks_for_eight_blocks_and_one_more_for_each_that_arrives() -> None:
    window = Window(100, rng=random.Random(0))
    missing = set(range(100))
    assert window.ask(missing, 0.0) == ((0, WINDOW_BLOCKS),)
    assert window.ask(missing, 0.1) == ()
    for index in (3, 5):
        missing.remove(index)
        window.arrived(index)
    assert indices(window.ask(missing, 0.2)) == [8, 9]


def test_a_block_that_stays_away_is_asked_for_again_ever_more_patiently() -> None:
    window, now, waits = Window(1, rng=random.Random(5)), 0.0, []
    assert window.ask({0}, now) == ((0, 1),)
    for _ in range(12):
        due = window.due
        assert due is not None
        assert window.ask({0}, due - 1e-6) == ()
        waits.append(due - now)
        now = due
        assert window.ask({0}, now) == ((0, 1),)
    expected = [min(ASK_AGAIN_S * 1.5**n, LONGEST_S) for n in range(12)]
    assert all(abs(wait / want - 1) <= JITTER + 1e-6 for wait, want in zip(waits, expected, strict=True))
    assert len(set(waits)) == len(waits)


def test_a_reconnect_asks_at_once() -> None:
    window = Window(3, rng=random.Random(0))
    window.ask({0, 1, 2}, 0.0)
    window.restart()
    assert window.ask({0, 1, 2}, 0.1) == ((0, 3),)
    assert Window(3).due is None


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), loss=st.floats(0, 0.7), seed=st.integers(0, 10_000))
def test_any_lossy_line_ends_with_everything_and_never_more_than_a_window_out(
    count: int, loss: float, seed: int
) -> None:
    rng = random.Random(seed)
    window, missing, now, out = Window(count, rng=rng), set(range(count)), 0.0, set[int]()
    for _ in range(200 * count):
        asked = indices(window.ask(missing, now))
        assert set(asked) <= missing
        out |= set(asked)
        assert len(asked) <= WINDOW_BLOCKS
        for index in asked:
            if rng.random() >= loss:
                missing.discard(index)
                window.arrived(index)
        if not missing:
            break
        now = now if asked and window.ask(missing, now) else (window.due or now)
    assert not missing
    assert out == set(range(count))
