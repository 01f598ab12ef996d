"""What Prometheus is told; the one place that imports its client."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("rrmove_serve_requests", "Requests answered", ["method", "status"], registry=own)
        self.seconds = Histogram(
            "rrmove_serve_request_seconds", "How long requests took", ["method"], registry=own, buckets=SECONDS
        )
        self.received = Counter("rrmove_serve_received_bytes", "Bytes written to part files", registry=own)
        self.sent = Counter("rrmove_serve_sent_bytes", "Bytes of files sent", registry=own)
        self.denied = Counter("rrmove_serve_denied", "Requests without the right token", registry=own)
        self.cut = Counter("rrmove_serve_cut", "Requests whose connection ended before their answer", registry=own)
        self.committed = Counter("rrmove_serve_committed", "Uploads that were committed", registry=own)
        self.connections = Gauge("rrmove_serve_connections", "Connections that are open", registry=own)
        self.uploads = Gauge("rrmove_serve_uploads", "Uploads that are known", registry=own)

    def text(self) -> bytes:
        """Give all of it in Prometheus' text format."""
        return generate_latest(self._registry)
