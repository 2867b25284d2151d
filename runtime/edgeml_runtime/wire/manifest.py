"""The manifest: everything a device must know of a release, and the digests it must insist on.

A release carries one graph per variant and one blob of goldens: rows with the answers that each
variant gave when it was verified. `boards` says which variant which board runs, `sessions` how,
where that is not as on other boards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire import blocks
from edgeml_runtime.wire.plain import from_plain, to_plain

SCHEMA = 1
MAX_THREADS = 1024
NUMERIC, CATEGORICAL = "numeric", "categorical"  # the two inputs of a model over a table
LABEL, PROBABILITIES, PREDICTION = "label", "probabilities", "prediction"  # the outputs of a model
PLAIN = "numpy"  # the variant that is a numpy program, for boards without onnxruntime
SCORES = "scores"  # float32 (n, k) in place of probabilities: a decision function, higher is nearer to the class


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes named by their sha256, with the sha256 of every block."""

    digest: str
    size: int
    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 < self.size <= blocks.MAX_BLOB_BYTES or len(self.blocks) != blocks.count(self.size):
            raise MalformedMessage(f"blob {self.digest[:12]}: {self.size} bytes cannot have {len(self.blocks)} blocks")


def blob_of(data: bytes) -> Blob:
    """Return the description of `data`."""
    hashes = tuple(blocks.digest_of(block) for block in blocks.split(data))
    return Blob(digest=blocks.digest_of(data), size=len(data), blocks=hashes)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph input or output; -1 in `shape` is the number of rows or unknown."""

    name: str
    dtype: Literal["float32", "float64", "int64", "int32", "int8", "uint8", "bool", "string", "float16"]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A column of the table the model was trained on, in the order of its input."""

    name: str
    kind: Literal["numeric", "categorical"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the device must reproduce on the goldens before it lets a variant serve."""

    max_abs: float  # on every float output
    label_flips: int  # labels that may differ from the recorded ones


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a session runs a graph. The defaults are an agent's: one thread, and nothing that burns an idle core.

    `spinning`: idle threads of the pool wait busily: at 10 predictions a second 40 % of a core, for less latency.
    `arena`: memory once asked for is kept for the next run. `mem_pattern`: it is planned once for a size of rows.
    `prepacking`: a second, faster copy of the weights. `external_data`: the device keeps them in a file of their own,
    which the kernel maps, so that without prepacking they take no memory of their own. `io_binding`: one row goes
    through buffers bound once.
    """

    threads: int = 1
    graph_level: Literal["disabled", "basic", "extended", "all"] = "all"
    spinning: bool = False
    arena: bool = True
    prepacking: bool = True
    mem_pattern: bool = True
    external_data: bool = False
    io_binding: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise MalformedMessage(f"threads is {self.threads}, but must be 1 to {MAX_THREADS}")


@dataclass(frozen=True, kw_only=True)
class ReleaseVariant:
    """One graph of the release and the session settings that won on its benchmark."""

    name: str
    graph: Blob
    bounds: Bounds
    session: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a release is. `goldens` is safetensors: `input.<name>` and `<variant>.<output>`."""

    schema: int = SCHEMA
    model: str
    release: str
    task: Literal["classification", "regression", "tensor"]
    created: str  # ISO 8601, UTC
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[Feature, ...] = ()
    target: str = ""  # the column it predicts
    classes: tuple[str, ...] = ()
    variants: tuple[ReleaseVariant, ...]
    default_variant: str
    boards: Mapping[str, str]  # board -> variant
    sessions: Mapping[str, Settings] = field(default_factory=dict)  # board -> settings, else the variant's
    goldens: Blob
    lineage: Mapping[str, str] = field(default_factory=dict)  # stage -> digest

    def variant_for(self, board: str) -> ReleaseVariant:
        """Return the variant chosen for `board`; the default one for a board nobody chose for."""
        name = self.boards.get(board, self.default_variant)
        return next(variant for variant in self.variants if variant.name == name)

    def session_for(self, board: str) -> Settings:
        """Return how `board` runs its variant."""
        return self.sessions.get(board, self.variant_for(board).session)

    def blobs_for(self, board: str) -> tuple[Blob, ...]:
        return self.blobs_of(self.variant_for(board))

    def blobs_of(self, variant: ReleaseVariant) -> tuple[Blob, ...]:
        return variant.graph, self.goldens

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = to_plain(self)
        return document


def read_manifest(document: dict[str, Any]) -> Manifest:
    """Return the manifest in a verified `document`; raise MalformedMessage when it is none."""
    if document.get("schema") != SCHEMA:
        raise MalformedMessage(f"manifest schema {document.get('schema')!r}: this side reads {SCHEMA}; update it")
    manifest = from_plain(Manifest, document)
    names = {variant.name for variant in manifest.variants}
    if wrong := ({manifest.default_variant} | set(manifest.boards.values())) - names:
        raise MalformedMessage(f"manifest of {manifest.model}: variant {sorted(wrong)[0]!r} is named but not listed")
    return manifest
