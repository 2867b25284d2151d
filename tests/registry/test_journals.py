"""The journal of federations: what is written together is there together, and gone when it should be."""

from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgeml.errors import NotFound
from edgeml.registry import Page, Registry, Upload


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path)


def an_upload(device: str, round: str = "fed-1", body: bytes = b"numbers") -> Upload:
    return Upload(round=round, device=device, header=b"header", body=body, took=1.5)


def test_a_page_is_replaced_and_its_arrays_stay_until_they_are_given_anew(registry: Registry) -> None:
    assert registry.journals.read("fed") == (None, [])
    registry.journals.write("fed", Page(phase="rounds", facts={"a": 1}, arrays=b"first"))
    registry.journals.write("fed", Page(phase="evaluating", facts={"a": 2}))
    page, _ = registry.journals.read("fed")
    assert page == Page(phase="evaluating", facts={"a": 2}, arrays=b"first")


def test_updates_come_back_in_the_order_of_their_arrival_and_once(registry: Registry) -> None:
    page = Page(phase="rounds", facts={}, arrays=b"")
    registry.journals.write("fed", page, [an_upload("z"), an_upload("a")])
    registry.journals.write("fed", page, [an_upload("m"), an_upload("a", body=b"again")])
    _, uploads = registry.journals.read("fed")
    assert [(one.device, one.body) for one in uploads] == [("z", b"numbers"), ("a", b"numbers"), ("m", b"numbers")]


def test_what_a_device_says_again_takes_the_place_of_what_it_said(registry: Registry) -> None:
    page = Page(phase="rounds", facts={}, arrays=b"")
    said = Upload(round="fed-1/keys", device="a", header=b"", body=b"keys", took=1.0)
    registry.journals.write("fed", page, [said, an_upload("a")])
    registry.journals.write("fed", page, [dataclasses.replace(said, body=b"new keys", took=2.0)])
    _, uploads = registry.journals.read("fed")
    assert [(one.round, one.body, one.took) for one in uploads] == [
        ("fed-1/keys", b"new keys", 2.0),
        ("fed-1", b"numbers", 1.5),
    ]


def test_what_single_devices_sent_is_gone_from_the_disk_when_the_round_is_over(
    registry: Registry, tmp_path: Path
) -> None:
    secret = bytes(range(256)) * 8
    page = Page(phase="rounds", facts={}, arrays=b"")
    registry.journals.write("fed", page, [an_upload("a", body=secret)])
    registry.journals.write("fed", page, [an_upload("b", round="fed-2")], anew=True)
    assert [one.device for one in registry.journals.read("fed")[1]] == ["b"]
    registry.close()
    with sqlite3.connect(tmp_path / "index.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert secret not in (tmp_path / "index.db").read_bytes()


def test_the_end_of_a_federation_leaves_nothing(registry: Registry) -> None:
    for name in ("fed", "other"):
        registry.journals.write(name, Page(phase="rounds", facts={}, arrays=b""), [an_upload("a")])
    registry.journals.forget("fed")
    assert registry.journals.known() == {"other"} and registry.journals.read("fed") == (None, [])
    assert len(registry.journals.read("other")[1]) == 1


WRITER = """
import os, sys
from pathlib import Path
from edgeml.registry import Page, Registry, Upload
registry = Registry.open(Path(sys.argv[1]))
for number in range(10**6):
    upload = Upload(round=f"r-{number}", device="a", header=b"", body=number.to_bytes(4, "big"), took=0.0)
    registry.journals.write("fed", Page(phase="rounds", facts={"number": number}, arrays=b""), [upload], anew=True)
    if number == 20:
        print("going", flush=True)
"""


@pytest.mark.fault
def test_a_writer_killed_at_any_moment_leaves_page_and_updates_that_agree(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"going\n"
    process.kill()
    process.wait()
    page, uploads = Registry.open(tmp_path).journals.read("fed")
    assert page is not None and page.facts["number"] >= 20
    assert [int.from_bytes(one.body, "big") for one in uploads] == [page.facts["number"]]


def test_a_device_is_known_by_its_first_key_until_that_is_forgotten(registry: Registry) -> None:
    assert registry.fleet.pin_key("a", "11") == "11"
    assert registry.fleet.pin_key("a", "22") == "11" and registry.fleet.keys() == {"a": "11"}
    registry.fleet.forget_key("a")
    assert registry.fleet.pin_key("a", "22") == "22"
    with pytest.raises(NotFound, match="no key of a device 'b'"):
        registry.fleet.forget_key("b")
