"""The rows of one model to a verdict, and every model's rows to tables."""

from __future__ import annotations

import statistics
from typing import Any

MAX_DROP = 0.01  # accuracy that a compressed model may lose
SLACK = 1.05  # "within 5 %"
ORT_BASED = (
    "onnxruntime fp32",
    "ORT static",
    "ORT dynamic",
    "Olive quantize",
    "Olive auto-opt",
    "NNCF accuracy control",
)
OTHERS = ("LiteRT", "OpenVINO", "scikit-learn", "treelite", "tl2cgen", "m2cgen")
OWN, BARE = "edgeml ", "edgeml, bare run: "
Row = dict[str, Any]


def judge(rows: list[Row], accuracy: float) -> dict[str, Any]:
    """Return the rows with ratios to the best ORT-based peer, the points compared, and the verdict in words."""
    timed = [row for row in rows if "p50_us" in row]
    holds = [row for row in timed if row["accuracy"] >= accuracy - MAX_DROP - 1e-9]
    peer = fastest(row for row in holds if row["peer"] in ORT_BASED)
    own = fastest(row for row in holds if row["peer"].startswith(OWN))
    bare = fastest(row for row in holds if row["peer"].startswith(BARE))
    if peer:
        for row in timed:
            row["ratio"] = ratio(row, peer)
    found: dict[str, Any] = {"rows": rows, "fp32_accuracy": accuracy}
    found |= {name: row["peer"] if row else "" for name, row in (("best_peer", peer), ("best", own), ("bare", bare))}
    found |= _latency(own, bare, peer) | _compile_time(rows, own)
    found["others"] = {name: _beside(name, holds, own) for name in OTHERS}
    for row in rows:
        row.pop("rounds_us", None)
    found["verdict"] = _words(found, own=own, peer=peer)
    return found


def fastest(rows: Any) -> Row | None:
    """Return the row of the lowest median."""
    return min(rows, key=lambda row: row["p50_us"], default=None)


def ratio(row: Row, to: Row) -> float:
    """Return the median over the rounds of what `row` took in units of what `to` took in the same round."""
    ratios: list[float] = [a / b for a, b in zip(row["rounds_us"], to["rounds_us"], strict=True)]
    return round(statistics.median(ratios), 3)


def _latency(own: Row | None, bare: Row | None, peer: Row | None) -> dict[str, Any]:
    if not peer:
        return {"holds": None, "bare_holds": None}
    return {
        "holds": bool(own and ratio(own, peer) <= SLACK),
        "bare_holds": bool(bare and ratio(bare, peer) <= SLACK),
        "ratio": own and ratio(own, peer),
        "bare_ratio": bare and ratio(bare, peer),
    }


def _beside(name: str, holds: list[Row], own: Row | None) -> float | None:
    """Return what the fastest of a peer's models that hold the bound takes, in units of edgeml's fastest."""
    row = fastest(row for row in holds if row["peer"].startswith(name))
    return ratio(row, own) if row and own else None


def _compile_time(rows: list[Row], own: Row | None) -> dict[str, Any]:
    """Return edgeml's time beside each peer's: float against float, the best variant against each quantizer."""
    mine = {row["peer"]: row["compile_s"] for row in rows if row["peer"].startswith(OWN) and not row["why"]}
    if not own or not mine:
        return {"slower_to_compile_than": {}}
    against = {row["peer"]: row["compile_s"] for row in rows if row["peer"] in ORT_BASED and not row["why"]}
    all_s = next((row["all_seconds"] for row in rows if row.get("all_seconds")), 0.0)
    own_s = {peer: mine["edgeml fp32"] if peer == "onnxruntime fp32" else mine[own["peer"]] for peer in against}
    slower = {peer: [round(own_s[peer], 2), round(s, 2)] for peer, s in against.items() if own_s[peer] > s}
    return {"slower_to_compile_than": slower, "all_variants_s": all_s}


def _words(found: dict[str, Any], *, own: Row | None, peer: Row | None) -> str:
    if not peer:
        return "no ORT-based peer ran"
    if not own:
        return f"FAILS: edgeml has nothing that holds the bound; best peer {peer['peer']}"
    word = "holds" if found["holds"] else "FAILS"
    text = f"{word}: {own['peer']} takes {found['ratio']:.2f} of {peer['peer']}"
    text += f" (graph alone {found['bare_ratio']:.2f}, {found['bare'].removeprefix(BARE)})"
    slower = found["slower_to_compile_than"]
    if not slower:
        return text + "; compiles faster than all of them"
    return text + "; compiles slower than " + ", ".join(f"{p} ({a} s against {b} s)" for p, (a, b) in slower.items())


def tables(result: dict[str, Any]) -> str:
    """Return a table per model and the verdicts in front."""
    load = ", ".join(f"{value:.1f}" for value in result["load_average"])
    parts = [f"One core, one thread, batch 1, {result['rounds']} interleaved rounds; load average {load}.\n"]
    parts += ["| model | verdict against the ORT-based peers |", "|---|---|"]
    parts += [f"| {name} | {found['verdict']} |" for name, found in result["models"].items()]
    parts += ["\nThe fastest of the other runtimes that loses at most 0.01, in units of edgeml's fastest that does:\n"]
    parts += [f"| model | {' | '.join(OTHERS)} |", "|---|" + "---:|" * len(OTHERS)]
    for name, found in result["models"].items():
        values = [found["others"][other] for other in OTHERS]
        parts.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.2f}' for v in values)} |")
    for name, found in result["models"].items():
        parts += [f"\n### {name}\n", "| peer | bytes | accuracy | p50 us | p90 us | ratio | compile s |"]
        parts.append("|---|---:|---:|---:|---:|---:|---:|")
        rows = sorted(found["rows"], key=lambda row: row.get("p50_us", 1e12))
        parts += [_line(row) for row in rows if not row["peer"].startswith(BARE) or row["peer"] == found["bare"]]
    return "\n".join(parts) + "\n"


def _line(row: Row) -> str:
    if "p50_us" not in row:
        return f"| {row['peer']} | {row['why'].replace('|', '/')[:160]} | | | | | |"
    numbers = f"{row['bytes']:,} | {row['accuracy']:.4f} | {row['p50_us']:.2f} | {row['p90_us']:.2f}"
    return f"| {row['peer']} | {numbers} | {row.get('ratio', 0):.2f} | {row['compile_s']:.1f} |"
