"""A benchmark as the server sees it, without a broker: every story ends, once, and with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edgeml.pipeline.remote_device import MOST_JOBS
from edgeml.server.errand import (
    ANSWER_S,
    BLOCKS_S,
    MARGIN_S,
    MOST_ASKED,
    MOST_UPLOADS,
    SILENT_S,
    Ask,
    Effect,
    End,
    Errand,
    Note,
    TakeBack,
    check_sender,
)
from edgeml_runtime.wire import MalformedMessage, WireError, blocks
from edgeml_runtime.wire.bench import BenchResult, JobResult, encode_result
from edgeml_runtime.wire.messages import (
    MAX_BYTES,
    BenchBlob,
    BenchJob,
    BenchPlan,
    BenchState,
    BenchStatus,
    BenchTask,
)
from edgeml_runtime.wire.plain import to_plain
from edgeml_runtime.wire.signed import sign

DEADLINE_S, GONE_S = 600.0, 120.0
TASK = BenchTask(
    device="pi-1",
    task="b1",
    kind="measure",
    seq=1,
    jobs=(BenchJob(name="fp32", verb="timing", graph="g", rows="r"),),
    deadline_s=DEADLINE_S,
)
RESULT = BenchResult(
    task="b1",
    device="pi-1",
    boot_id="x",
    agent="0.1",
    environment={},
    hardware={},
    jobs=(JobResult(name="fp32", reason="Killed", detail="x" * 60_000),),
)
DATA = encode_result(RESULT)


def said(state: BenchState, **changes: Any) -> BenchStatus:
    return BenchStatus(task="b1", device="pi-1", boot_id="x", state=state, **changes)


def done() -> BenchStatus:
    return said("DONE", digest=blocks.digest_of(DATA), size=len(DATA))


def parts() -> list[blocks.Block]:
    digest = blocks.digest_of(DATA)
    return [blocks.decode(blocks.encode(digest, index, part)) for index, part in enumerate(blocks.split(DATA))]


def end_of(effects: list[Effect]) -> End:
    (end,) = (one for one in effects if isinstance(one, End))
    return end


def test_it_is_asked_works_and_its_result_is_put_together() -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    assert errand.tick(0.0, online=True) == [Ask()]
    assert errand.tick(1.0, online=True) == []
    assert errand.heard(said("RUNNING"), 1.0) == [Note(said("RUNNING"))]
    assert errand.heard(done(), 9.0) == [Note(done())]
    *first, last = parts()
    assert [effect for block in first for effect in errand.took(block, 9.0)] == []
    end = end_of(errand.took(last, 9.0))
    assert (end.result, end.data) == (RESULT, DATA)
    assert errand.tick(1e6, online=True) == []
    assert errand.heard(done(), 1e6) == []


def test_blocks_that_are_lost_are_asked_for_again_and_not_for_ever() -> None:
    errand, now = Errand(TASK, 0.0, gone_s=GONE_S), 0.0
    errand.tick(now, online=True)
    for _ in range(MOST_UPLOADS):
        errand.heard(done(), now)
        errand.took(parts()[0], now)
        assert errand.tick(now + BLOCKS_S - 1, online=True) == []
        now += BLOCKS_S
        assert errand.tick(now, online=True) == [Ask()]
    errand.heard(done(), now)
    assert end_of(errand.tick(now + BLOCKS_S, online=True)).reason == "NoResult"


def test_a_device_that_says_nothing_is_asked_again_and_not_for_ever() -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    for turn in range(MOST_ASKED):
        assert errand.tick(turn * ANSWER_S, online=True) == [Ask()]
    end = end_of(errand.tick(MOST_ASKED * ANSWER_S, online=True))
    assert end.reason == "NoAnswer"
    assert "update its agent" in end.detail


def test_one_that_works_and_falls_silent_is_asked_how_it_stands() -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    errand.tick(0.0, online=True)
    errand.heard(said("RUNNING"), 1.0)
    assert errand.tick(SILENT_S, online=True) == []
    assert errand.tick(1.0 + SILENT_S, online=True) == [Ask()]


def test_one_that_comes_back_is_asked_at_once_and_one_that_stays_away_ends_it() -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    errand.tick(0.0, online=True)
    errand.heard(said("QUEUED", reason="Serving", detail="9 predictions a second"), 1.0)
    assert errand.tick(2.0, online=False) == []
    errand.came(60.0)
    assert errand.tick(60.0, online=True) == [Ask()]
    assert errand.tick(61.0, online=False) == []
    end = end_of(errand.tick(60.0 + GONE_S, online=False))
    assert end.reason == "DeviceGone"
    assert "QUEUED: Serving: 9 predictions a second" in end.detail


@pytest.mark.parametrize("state", ["REFUSED", "FAILED", "CANCELED"])
def test_what_the_device_ends_has_its_reason(state: BenchState) -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    errand.tick(0.0, online=True)
    end = end_of(errand.heard(said(state, reason="Policy", detail="the owner says no"), 1.0))
    assert (end.reason, end.detail, end.result) == ("Policy", "the owner says no", None)


@pytest.mark.parametrize(
    "status",
    [
        said("DONE", digest="../../etc", size=10),
        said("DONE", digest="0" * 64, size=1 << 40),
        said("DONE", digest="0" * 64, size=-1),
        said("DONE"),
    ],
    ids=["digest", "size", "negative", "nothing"],
)
def test_a_result_that_cannot_be_is_refused_before_a_block_is_kept(status: BenchStatus) -> None:
    errand = Errand(TASK, 0.0, gone_s=GONE_S)
    errand.tick(0.0, online=True)
    with pytest.raises(MalformedMessage) as caught:
        errand.heard(status, 1.0)
    assert end_of(errand.refused(caught.value)).reason == "BadResult"


def test_a_status_counts_only_on_its_own_devices_topic() -> None:
    assert check_sender(done(), "pi-1") == done()
    with pytest.raises(MalformedMessage, match="of pi-1 on the topic of pi-2"):
        check_sender(done(), "pi-2")


def test_the_largest_batch_fits_the_strictest_broker() -> None:
    digests = [blocks.digest_of(str(index).encode()) for index in range(2 * MOST_JOBS)]
    plan = BenchPlan(warmup_s=0.123, min_s=0.456, min_count=20, max_s=2.345)
    task = BenchTask(
        device="d" * 64,
        task="bench-0123abcd",
        kind="calibrate",
        seq=2**31,
        jobs=tuple(
            BenchJob(name=str(i), verb="operators", graph=digests[i], rows=digests[-1 - i], plan=plan)
            for i in range(MOST_JOBS)
        ),
        blobs=tuple(BenchBlob(digest=digest, size=8 << 20, inflated=256 << 20) for digest in digests),
    )
    envelope = sign(to_plain(task), Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert len(envelope) <= MAX_BYTES[BenchTask]


EVENTS = st.sampled_from(["on", "off", "came", "queued", "running", "done", "block", "wrong", "refuse", "cancel"])


@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 40.0)), max_size=60))
def test_every_story_ends_once_and_by_its_deadline(story: list[tuple[str, float]]) -> None:
    errand, now, ends, online = Errand(TASK, 0.0, gone_s=GONE_S), 0.0, list[End](), False
    wrong = blocks.Block(parts()[0].prefix, 0, b"wrong")

    def after(event: str) -> list[Effect]:
        match event:
            case "came":
                errand.came(now)
            case "queued" | "running":
                return errand.heard(said("QUEUED" if event == "queued" else "RUNNING"), now)
            case "done":
                return errand.heard(done(), now)
            case "block" | "wrong":
                return errand.took(wrong if event == "wrong" else parts()[-1], now)
            case "refuse":
                return errand.heard(said("REFUSED", reason="Policy"), now)
            case "cancel":
                return errand.cancel()
        return []

    for event, pause in story:
        now += pause
        online = {"on": True, "off": False, "came": True}.get(event, online)
        try:
            effects = after(event)
        except WireError as error:
            effects = errand.refused(error)
        effects += errand.tick(now, online=online)
        ends += [effect for effect in effects if isinstance(effect, End)]
        assert all(isinstance(effect, Ask | Note | TakeBack | End) for effect in effects)
    while now <= DEADLINE_S + MARGIN_S and not ends:
        now += 1.0
        ends += [effect for effect in errand.tick(now, online=online) if isinstance(effect, End)]
    assert len(ends) == 1
    assert ends[0].result is not None or (ends[0].reason and ends[0].detail)
    assert errand.tick(now + 1e6, online=True) == []
