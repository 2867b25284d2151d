"""The tables of predict_published.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeml.bench.predict.published import (
    HOLD,
)


def report(found: Mapping[str, Any]) -> list[str]:
    """Return everything as Markdown."""
    lines = [
        "Networks left out one by one (mean error; each predicted by a fit to the others of its table):",
        "",
        "| board | runtime | type | threads | networks | roofline | within 20 % | in its 90 % range | FLOPs x factor | "
        "nearest network |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["networks_left_out"]:
        board, runtime, precision, threads = one["table"]
        lines.append(
            f"| {board} | {runtime} | {precision} | {threads} | {one['networks']} | **{one['roofline_mape']:.1%}** | "
            f"{one['roofline_within_20']:.0%} | {one['coverage90']:.0%} | {one['flops_mape']:.0%} | "
            f"{one['nearest_mape']:.0%} |"
        )
    s = found["summary"]
    lines += [
        "",
        f"At one thread in float: {s['one_thread_mape']:.1%} in the mean of {s['one_thread_tables']} tables, FLOPs "
        f"times a factor {s['one_thread_flops']:.0%}, nearest network {s['one_thread_nearest']:.0%}. "
        f"{s['coverage90']:.0%} of all {s['networks']} timings lie in their 90 % range.",
        "",
        "One board from another by one scalar (the median ratio of the other networks, ncnn):",
        "",
        "| from | to | threads | networks | factor | mean error | largest |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in found["by_scalar"]:
        lines.append(
            f"| {one['source']} | {one['target']} | {one['threads']} | {one['networks']} | {one['factor']:.2f} | "
            f"**{one['mape']:.1%}** | {one['largest']:.0%} |"
        )
    lines += [
        "",
        "One board from another's fit, carried by clock, peak and bandwidth alone (nothing of the target is used):",
        "",
        "| from | to | type | threads | alike by | mean error | spread |",
        "|---|---|---|---:|---|---:|---:|",
    ]
    for one in found["boards_left_out"]:
        lines.append(
            f"| {one['source']} | {one['target']} | {one['precision']} | {one['threads']} | {one['level']} | "
            f"{one['mape']:.0%} | {one['spread']:.2f} |"
        )
    lines += [
        "",
        "One runtime from the middle of the others on the same board (bias: predicted over published):",
        "",
        "| board | runtime | by | type | threads | networks | bias | mean error | spread |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in found["runtimes_left_out"]:
        lines.append(
            f"| {one['board']} | {one['runtime']} | {', '.join(one['by'])} | {one['precision']} | {one['threads']} | "
            f"{one['networks']} | {one['bias']:.2f} | {one['mape']:.0%} | {one['spread']:.2f} |"
        )
    lines += [
        "",
        "The range of the prior, when what a timing tells is kept from it:",
        "",
        "| kept from it | predicted by | timings | in the 90 % range | its factor up and down |",
        "|---|---|---:|---:|---:|",
    ]
    words = {
        "runtime": ("the runtime", "other runtimes on the board"),
        "core": ("the board", "other boards with its core, all runtimes"),
        "kind": ("the board and its core", "boards with its kind of core, all runtimes"),
    }
    for level, one in found["ranges"].items():
        lines.append(
            f"| {' | '.join(words[level])} | {one['timings']} | {one['coverage90']:.0%} | {one['factor']:.2f} |"
        )
    c, p = found["counted"], found["precisions"]
    lines += [
        "",
        f"Counted costs alone, nothing fitted, against {c['timings']} timings of one thread: {c['within_2']:.0%} "
        f"within a factor of two, nine of ten within "
        f"{c['factor90']:.2f}, predicted over published {c['median_ratio']:.2f} in "
        "the median.",
    ]
    for way, told in (("fitted to the others", p["fitted"]), ("counted alone, one thread", p["counted"])):
        lines += [
            "",
            f"int8 and float of one network on one board and runtime, {way} ({told['pairs']} pairs): errors "
            f"correlate by {told['correlation']:.2f}; the ratio is wrong "
            f"by {told['spread_of_ratio']:.2f} of its logarithm, either "
            f"alone by {told['spread_int8']:.2f} and {told['spread_fp32']:.2f}.",
        ]
    lines += [
        "",
        f"Spreads are standard deviations of the logarithm. HOLD is {HOLD:g}; the mean error over these tables is "
        + ", ".join(f"{np.mean(list(v.values())):.1%} at {k}" for k, v in found["holds"].items())
        + ".",
    ]
    return lines
