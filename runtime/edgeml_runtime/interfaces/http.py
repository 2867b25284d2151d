"""The local HTTP door: predictions, labels, samples, status and metrics for programs on this device.

    POST /predict  {"rows": [[...] or {"column": value}, ...], "keep": true}    or raw little-endian float32
    POST /label    {"id": 7, "target": "cat"}          POST /samples  {"rows": [...], "targets": [...]}
    GET  /status   JSON                                GET  /metrics  Prometheus text

It listens on 127.0.0.1 only, and takes JSON and raw bytes but no forms, so that no web page can post to it.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgeml_runtime import rows
from edgeml_runtime.errors import AgentRefused, DeviceError, ModelRefused, ShapeMismatch, StorageFull
from edgeml_runtime.metrics import Counters
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving
from edgeml_runtime.wire.messages import Metrics

HOST = "127.0.0.1"
MAX_BODY_BYTES = 16 << 20
IDLE_S = 30.0  # a connection that says nothing for so long is closed
RAW = "application/octet-stream"
CODES: dict[type[DeviceError], int] = {ShapeMismatch: 400, ModelRefused: 503, StorageFull: 507}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Doors:
    """What the interface reaches; `status` is asked for at each request, `labelled` told after each change."""

    serving: Serving
    samples: Samples
    counters: Counters
    status: Callable[[], dict[str, Any]]
    labelled: Callable[[], None]


@dataclass(frozen=True)
class Reply:
    body: bytes
    kind: str = "application/json"
    code: int = 200


def serve(doors: Doors, port: int) -> ThreadingHTTPServer:
    """Return a server that listens on `port` of the local interface; 0 takes a free one. `serve_forever` runs it."""
    handler = type("Handler", (_Handler,), {"doors": doors})
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        raise AgentRefused(
            f"HTTP port {port} of {HOST}: {error.strerror}; enroll with another --http-port, or 0"
        ) from error


def predict(doors: Doors, body: bytes, *, raw: bool, answer_raw: bool) -> Reply:
    """Answer POST /predict."""
    asked = {} if raw else _object(body)
    manifest = doors.serving.manifest
    inputs = rows.parse_bytes(manifest, body) if raw else rows.parse(manifest, asked.get("rows"))
    answer = doors.serving.predict(inputs)
    if answer_raw:
        return Reply(answer.raw(), RAW)
    kept = {"ids": doors.samples.add_many(inputs, now=time.time())} if asked.get("keep") is True else {}
    return _json({**answer.document(), **kept})


def label(doors: Doors, body: bytes) -> Reply:
    """Answer POST /label."""
    asked = _object(body)
    sample = asked.get("id")
    if type(sample) is not int or "target" not in asked:
        raise ShapeMismatch('send {"id": <number that /predict with "keep" gave>, "target": <class name or number>}')
    if not doors.samples.label(sample, rows.parse_target(doors.serving.manifest, asked["target"])):
        return _json({"error": f"no sample {sample} is kept here (any more)"}, code=404)
    doors.labelled()
    return _json({"id": sample, "labelled": True})


def samples(doors: Doors, body: bytes) -> Reply:
    """Answer POST /samples."""
    asked = _object(body)
    manifest = doors.serving.manifest
    inputs = rows.parse(manifest, asked.get("rows"))
    targets = rows.parse_targets(manifest, asked.get("targets"))
    ids = doors.samples.add_many(inputs, targets=targets, now=time.time())
    doors.labelled()
    return _json({"ids": ids, "labelled": doors.samples.labelled()})


def metrics_text(metrics: Metrics) -> str:
    """Return `metrics` as Prometheus reads them."""
    lines = [
        "# TYPE edgeml_predictions_total counter",
        f"edgeml_predictions_total {metrics.predictions}",
        "# TYPE edgeml_errors_total counter",
        f"edgeml_errors_total {metrics.errors}",
        "# TYPE edgeml_resident_memory_bytes gauge",
        f"edgeml_resident_memory_bytes {metrics.rss_bytes}",
        "# TYPE edgeml_uptime_seconds gauge",
        f"edgeml_uptime_seconds {metrics.uptime_s:.3f}",
    ]
    if metrics.latency is not None:
        total = 0
        lines.append("# TYPE edgeml_request_seconds histogram")
        edges = [*(f"{edge:g}" for edge in metrics.latency.edges), "+Inf"]
        for edge, count in zip(edges, metrics.latency.counts, strict=True):
            total += count
            lines.append(f'edgeml_request_seconds_bucket{{le="{edge}"}} {total}')
        lines.append(f"edgeml_request_seconds_count {total}")
    return "\n".join(lines) + "\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("HTTP: a connection from %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    doors: Doors
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    wbufsize = -1  # headers and body in one packet

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:  # the name http.server asks for
        if not self._is_local():
            return
        if self.path == "/status":
            self._send(_json(self.doors.status()))
        elif self.path == "/metrics":
            text = metrics_text(self.doors.counters.snapshot(time.monotonic()))
            self._send(Reply(text.encode(), "text/plain; version=0.0.4"))
        else:
            self._send(_json({"error": f"no {self.path}; there are GET /status and /metrics"}, code=404))

    def do_POST(self) -> None:
        if not self._is_local():
            return
        body = self._body()
        if body is not None:
            self._send(self._answer(body))

    def _answer(self, body: bytes) -> Reply:
        kind = self.headers.get_content_type()
        raw = kind == RAW
        if not raw and kind != "application/json":
            return _json({"error": f"content type {kind}: send application/json or {RAW}"}, code=415)
        try:
            match self.path:
                case "/predict":
                    return predict(self.doors, body, raw=raw, answer_raw=self.headers.get("Accept") == RAW)
                case "/label":
                    return label(self.doors, body)
                case "/samples":
                    return samples(self.doors, body)
            return _json({"error": f"no {self.path}; there are POST /predict, /label and /samples"}, code=404)
        except DeviceError as error:
            return _json({"error": str(error), "reason": error.reason}, code=CODES.get(type(error), 500))
        except Exception as error:  # one request fails, the others go on; the log has the trace
            log.exception("%s", self.path)
            return _json({"error": f"{type(error).__name__}: {error}", "reason": type(error).__name__}, code=500)

    def _is_local(self) -> bool:
        """Refuse names other than this machine's: a web page could point its own name at 127.0.0.1."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host in ("", HOST, "localhost"):
            return True
        self.close_connection = True
        self._send(_json({"error": f"host {host[:40]!r}: ask {HOST}"}, code=403))
        return False

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(
                _json(
                    {"error": f"Content-Length {length or 'missing'}: send at most {MAX_BODY_BYTES:,} bytes"}, code=413
                )
            )
            return None
        return self.rfile.read(int(length))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.code)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ShapeMismatch(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ShapeMismatch('the body is no JSON object: send {"rows": [...]}')
    return found


def _json(told: dict[str, Any], *, code: int = 200) -> Reply:
    return Reply(json.dumps(told).encode(), code=code)
