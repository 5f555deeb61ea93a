"""The spans that a sidecar sends to an OpenTelemetry collector, read with OpenTelemetry's own library.

Started by `otlp`, which builds the sidecar: otlp.py BINARY
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
AUTHORIZATION = "Bearer of-the-collector"
spans, resources, forwarded, authorizations = [], [], [], set()
is_away = threading.Event()


class Stand(BaseHTTPRequestHandler):
    """QStash, which refuses one URL group, and the collector."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            if is_away.is_set():
                return self.answer(503, b"")
            assert self.headers["content-type"] == "application/x-protobuf"
            authorizations.add(self.headers["authorization"])
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                resources.append(attributes(resource.resource))
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            return self.answer(200, b"")
        if self.path == "/v2/batch":
            messages = json.loads(body)
            forwarded.extend(message["headers"]["Upstash-Forward-traceparent"] for message in messages)
            return self.answer(202, json.dumps([{"messageId": "msg_1"} for _ in messages]).encode())
        forwarded.append(self.headers["upstash-forward-traceparent"])
        if self.path.endswith("/refused"):
            return self.answer(400, b'{"error":"no"}')
        return self.answer(202, b'{"messageId":"msg_1"}')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def attributes(of):
    return {item.key: item.value.string_value or item.value.int_value for item in of.attributes}


def until(what, ready):
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline, f"{what}: {[span.name for span in spans]}\n{open(log.name).read()}"
        time.sleep(0.05)


def post(path="", **headers):
    """The event's id."""
    body = json.dumps({"event": "entry.publish", "model": "article", "uid": "api::article.article"}).encode()
    request = urllib.request.Request(f"http://{webhook}/webhook{path}", body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 202
        return answer.headers["x-event-id"]


def spans_of(event):
    found = {span.name: span for span in spans if attributes(span)["event.id"] == event}
    return found.get("receive"), found.get("publish")


server = ThreadingHTTPServer(("127.0.0.1", 0), Stand)
threading.Thread(target=server.serve_forever, daemon=True).start()
stand = f"http://127.0.0.1:{server.server_port}"
data, log = tempfile.TemporaryDirectory(), tempfile.NamedTemporaryFile("w+")
environment = {
    **os.environ,
    "QSTASH_TOKEN": "nobody-reads-this",
    "QSTASH_URL": stand,
    "OTEL_EXPORTER_OTLP_ENDPOINT": stand,
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=" + AUTHORIZATION.replace(" ", "%20"),
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}
sidecar = subprocess.Popen(
    [sys.argv[1], "--topic", "news", "--listen", "127.0.0.1:0", "--no-admin", "--data-dir", data.name, "--log-format", "json"],
    env=environment,
    stderr=log,
)
try:
    lines = lambda: [json.loads(line) for line in open(log.name)]
    address = lambda: [line["message"] for line in lines() if line["message"].startswith("Webhooks go to")]
    until("the sidecar to start", address)
    webhook = address()[0].split("//")[1].split("/")[0]

    # A trace that begins here is named as the event, and the receiver is told of the first span.
    own = post()
    until("its spans", lambda: all(spans_of(own)))
    received, published = spans_of(own)
    assert received.trace_id == published.trace_id == uuid.UUID(own).bytes
    assert received.parent_span_id == b"" and published.parent_span_id == received.span_id
    assert forwarded == [f"00-{received.trace_id.hex()}-{received.span_id.hex()}-01"]
    assert (received.kind, published.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_PRODUCER)
    assert received.start_time_unix_nano < received.end_time_unix_nano < published.end_time_unix_nano
    assert abs(received.end_time_unix_nano / 1e9 - time.time()) < 60
    about = {"event.id": own, "event.kind": "entry.publish", "event.model": "article", "event.uid": "api::article.article"}
    assert attributes(received) == {**about, "http.response.status_code": 202}
    assert attributes(published) == {**about, "destination": "news", "message_id": "msg_1"}
    assert resources[0]["service.name"] == "strapi-qstash"
    assert authorizations == {AUTHORIZATION}

    # One that Strapi began goes on, and what it goes on with is unchanged.
    given = f"00-{TRACE}-{PARENT}-01"
    theirs = post(traceparent=given)
    until("its spans", lambda: all(spans_of(theirs)))
    for span in spans_of(theirs):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert forwarded[-1] == given

    # What failed says so, in QStash's words.
    refused = post("/refused")
    until("its spans", lambda: all(spans_of(refused)))
    status = spans_of(refused)[1].status
    assert status.code == Status.STATUS_CODE_ERROR and "400" in status.message, status

    # One that its sender does not record is not recorded here; a collector that is away is told of,
    # and holds back nothing.
    before = len(forwarded)
    unrecorded = post(traceparent=f"00-{TRACE}-{PARENT}-00")
    until("it to be published", lambda: len(forwarded) == before + 1)
    is_away.set()
    for _ in range(3):
        post()
    until("events to be published", lambda: len(forwarded) == before + 4)
    until("it to be told", lambda: any(line["level"] in ("WARN", "ERROR") for line in lines()[-20:]))
    is_away.clear()

    # The last spans are sent at the stop.
    last = post()
    until("it to be published", lambda: len(forwarded) == before + 5)
    sidecar.send_signal(signal.SIGTERM)
    assert sidecar.wait(20) == 0
    assert all(spans_of(last))
    assert spans_of(unrecorded) == (None, None)
    assert AUTHORIZATION.split()[1] not in open(log.name).read()
finally:
    sidecar.kill()
