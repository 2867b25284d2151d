"""A profile from what a device says of itself: `edgeml-agent hardware`, or the report in a server's registry.

Peaks come from the core, where LLVM has a model of it; bandwidth stays unknown until it is measured. A report is
input from outside: what is not in the expected form is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.devices.cores import BY_PART, PEAKS, Core
from edgeml.devices.profile import DeviceProfile
from edgeml.errors import ProjectError

ARCHES = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64"}
DOT_PRODUCT = {"aarch64": ("asimddp",), "x86_64": ("avx_vnni", "avx512_vnni")}
FP16 = {"aarch64": ("asimdhp",)}
PEAK_SOURCE = "LLVM 19 scheduling model of the core, run with llvm-mca"


def profile_of(report: Mapping[str, Any], *, name: str, by: str = "the device") -> DeviceProfile:
    """Return the board that `report` describes, of its fastest cores; raise ProjectError saying what it lacks.

    `by` is who reported, for the sources.
    """
    arch = ARCHES.get(_text(report, "arch", name).lower())
    if arch is None or _number(report, "bits", name) == 32:
        raise ProjectError(
            f"board {name!r}: the report is of a {report.get('bits', '')}-bit {report['arch']} system, but profiles "
            f"are of 64-bit ones: install a 64-bit system; old boards are served by numpy programs, without a profile"
        )
    cluster, source = _fastest(report, name), f"reported by {by} on {_text(report, 'at', name)}"
    core = _core_of(cluster)
    facts = _machine(report, cluster, name) | _instructions(report, arch, name)
    sources = dict.fromkeys(facts, source) | {"arch": source}
    if others := _others(report, cluster):
        facts["described"] = f"the fastest kind of core; beside them {others}"
        sources["described"] = source
    facts["core"] = core.name if core else cluster.get("name")
    sources["core"] = f"{source}: {_identity(cluster)}"
    if core:
        facts |= _of(core)
        sources["pipeline"] = f"of the core, {core.name}"
        sources |= dict.fromkeys(("fp32_flops_per_cycle", "int8_macs_per_cycle"), f"{PEAK_SOURCE}, {core.name}")
    facts = {fact: value for fact, value in facts.items() if value is not None}
    sources = {fact: words for fact, words in sources.items() if fact in facts or fact == "arch"}
    title = str(report.get("model") or cluster.get("name") or name)
    return DeviceProfile(name=name, title=title[:120], arch=arch, sources=sources, **facts)  # type: ignore[arg-type]


def _machine(report: Mapping[str, Any], cluster: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the facts that are numbers: cores, clock, memory, caches, and the runtime's version."""
    khz, memory = _number(cluster, "max_frequency_khz", name), _number(report, "memory_bytes", name)
    caches = {
        cache["level"]: cache["bytes"] >> 10
        for cache in _mappings(cluster.get("caches", ()), "caches", name)
        if _number(cache, "level", name) and _number(cache, "bytes", name)
    }
    usable = memory >> 20 if memory else None
    version = report.get("onnxruntime")
    return {
        "cores": _number(cluster, "cores", name),
        "frequency_ghz": round(khz / 1e6, 3) if khz else None,
        "usable_ram_mb": usable,
        "l2_kb": caches.get(2),
        "l3_kb": caches.get(3),
        "runtime": ".".join(version.split(".")[:2]) if isinstance(version, str) else None,
    }


def _instructions(report: Mapping[str, Any], arch: str, name: str) -> dict[str, Any]:
    features = report.get("features")
    if not isinstance(features, list | tuple) or not all(isinstance(item, str) for item in features):
        return {}
    has = {"dot_product": DOT_PRODUCT[arch], "fp16": FP16.get(arch, ())}
    found: dict[str, Any] = {fact: any(item in features for item in items) for fact, items in has.items() if items}
    return found | ({"i8mm": "i8mm" in features} if arch == "aarch64" else {})


def _of(core: Core) -> dict[str, Any]:
    fp32, int8 = PEAKS.get(core.name, (None, None))
    return {"pipeline": core.pipeline, "fp32_flops_per_cycle": fp32, "int8_macs_per_cycle": int8}


def _fastest(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the cluster of the highest clock; of several, the one with the most cores."""
    clusters = _mappings(report.get("clusters", ()), "clusters", name)
    if not clusters:
        raise ProjectError(f"board {name!r}: the report names no cores; make it with `edgeml-agent hardware`")
    return max(clusters, key=lambda one: (_number(one, "max_frequency_khz", name) or 0, _number(one, "cores", name)))


def _others(report: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    rest = [cluster for cluster in report["clusters"] if cluster is not chosen]
    return " and ".join(f"{cluster.get('cores')} {_called(cluster)}" for cluster in rest)


def _core_of(cluster: Mapping[str, Any]) -> Core | None:
    return BY_PART.get((str(cluster.get("implementer", "")).lower(), str(cluster.get("part", "")).lower()))


def _called(cluster: Mapping[str, Any]) -> str:
    core = _core_of(cluster)
    khz = cluster.get("max_frequency_khz")
    clock = f" at {khz / 1e6:g} GHz" if isinstance(khz, int) else ""
    return f"{core.name if core else cluster.get('name') or 'unknown'}{clock}"


def _identity(cluster: Mapping[str, Any]) -> str:
    if cluster.get("part"):
        return f"implementer {cluster.get('implementer')}, part {cluster['part']}"
    return str(cluster.get("name") or "no name")


def _mappings(given: Any, key: str, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(given, list | tuple) or not all(isinstance(item, Mapping) for item in given):
        raise ProjectError(
            f"board {name!r}: {key} of the report is no list of objects; is it `edgeml-agent hardware`'s?"
        )
    return given


def _text(report: Mapping[str, Any], key: str, name: str) -> str:
    value = report.get(key)
    if not isinstance(value, str) or not value:
        raise ProjectError(f"board {name!r}: the report has no {key}; make it with `edgeml-agent hardware`")
    return value


def _number(of: Mapping[str, Any], key: str, name: str) -> int | None:
    value = of.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProjectError(f"board {name!r}: {key} of the report is {value!r}, but must be a whole number, 0 or more")
    return value
