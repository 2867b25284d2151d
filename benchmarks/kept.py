"""Results that are kept part by part in results/: a long benchmark can be run in pieces, and shows what it has."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
Kept = dict[str, Any]  # what each part found, "seconds" of each, and "environment"


def run_parts(
    name: str, parts: Mapping[str, Callable[[], Any]], *, table: Callable[[Kept], str], about: str | None
) -> None:
    """Run all of `parts`, or those that `--only` names or begins; after each write results/`name`.json and .md."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"a part, or how some begin: {', '.join(parts)}")
    only = parser.parse_args().only
    chosen = [only] if only in parts else [part for part in parts if part.startswith(only)]
    if not chosen:
        parser.error(f"no part begins with {only!r}")
    path = RESULTS / f"{name}.json"
    for part in chosen:
        began = time.perf_counter()
        found = parts[part]()
        held: Kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # others may be at it too
        seconds = {**held.pop("seconds", {}), part: round(time.perf_counter() - began, 1)}
        held |= {part: found}
        kept = {one: held[one] for one in parts if one in held} | {"seconds": seconds, "environment": environment()}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(kept), encoding="utf-8")
        print(part, table(kept), sep="\n", flush=True)
