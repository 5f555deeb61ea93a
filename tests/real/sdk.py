"""Upstash's Python SDK as client and receiver of the development server at DEV_URL.

Started by `sdk`, which installs the SDK and starts the server.
"""

import contextlib
import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qstash import QStash, Receiver
from qstash.errors import QStashError, SignatureError
from qstash.log import LogState

# Upstash's public ones, for development.
TOKEN = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0="
CURRENT = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
NEXT = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"

client = QStash(TOKEN, base_url=os.environ["DEV_URL"], retry=False)
receiver = Receiver(CURRENT, NEXT)
arrived = []
started = time.monotonic()


class Api(BaseHTTPRequestHandler):
    """The receiving API: 500 for /fail, 200 for all else."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        arrived.append((self.path, self.headers, body))
        self.send_response(500 if self.path == "/fail" else 200)
        self.send_header("content-length", "8")
        self.end_headers()
        self.wfile.write(b"answered")

    do_PUT = do_POST

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
api = f"http://127.0.0.1:{server.server_port}"


def until(what, condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)
    return found


def at(path):
    return [one for one in arrived if one[0] == path]


def arrival(path, count=1):
    return until(f"{count} at {path}", lambda: len(at(path)) >= count and at(path))


def verify(delivery):
    path, headers, body = delivery
    receiver.verify(signature=headers["upstash-signature"], body=body.decode(), url=api + path)


def states(message_id):
    logs = client.log.list(filter={"message_id": message_id}).logs
    return [log.state for log in reversed(logs)]


def reaches(message_id, state):
    until(f"{message_id} to be {state}", lambda: state in states(message_id))


def refused(call, text):
    try:
        call()
    except QStashError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"it was not refused with {text!r}")


def a_message_arrives_verifies_and_is_followed():
    sent = client.message.publish_json(
        url=f"{api}/url", body={"n": 1}, headers={"X-Own": "1"}, label="py", retry_delay="1000"
    )
    message = client.message.get(sent.message_id)
    assert (message.body, message.label, message.max_retries) == ('{"n": 1}', "py", 3)
    assert message.retry_delay_expression == "1000"
    delivery = arrival("/url")[0]
    assert delivery[1]["x-own"] == "1"
    verify(delivery)
    reaches(sent.message_id, LogState.DELIVERED)
    assert states(sent.message_id) == [LogState.CREATED, LogState.ACTIVE, LogState.DELIVERED]
    log = client.log.list(filter={"label": "py"}, count=1)
    assert (len(log.logs), log.logs[0].retry_delay_expression) == (1, "1000")
    assert client.log.list(cursor=log.cursor, filter={"label": "py"}).logs[0].state == LogState.ACTIVE


def a_url_group_gets_a_message_for_each_endpoint():
    endpoints = [{"name": "one", "url": f"{api}/one"}, {"url": f"{api}/two"}]
    client.url_group.upsert_endpoints("py-group", endpoints)
    group = client.url_group.get("py-group")
    assert [endpoint.name for endpoint in group.endpoints] == ["one", None]
    sent = client.message.publish_json(url_group="py-group", body=1)
    assert [one.url for one in sent] == [f"{api}/one", f"{api}/two"]
    for path in ("/one", "/two"):
        verify(arrival(path)[0])
    client.url_group.remove_endpoints("py-group", [{"name": "one"}, {"url": f"{api}/two"}])
    refused(lambda: client.url_group.get("py-group"), "topic py-group not found")
    client.url_group.delete("py-group")


def a_batch_takes_urls_groups_and_queues():
    client.url_group.upsert_endpoints("py-batch", [{"url": f"{api}/batch-b"}])
    url, group, queue = client.message.batch_json(
        [
            {"url": f"{api}/batch-a", "body": 1},
            {"url_group": "py-batch", "body": 2},
            {"queue": "py-queue", "url": f"{api}/batch-c", "body": 3},
        ]
    )
    assert url.message_id and group[0].url == f"{api}/batch-b" and queue.message_id
    for path, body in (("a", b"1"), ("b", b"2"), ("c", b"3")):
        assert arrival(f"/batch-{path}")[0][2] == body


def a_queue_delivers_in_order():
    client.queue.upsert("py-fifo", parallelism=1, paused=True)
    for n in range(4):
        client.message.enqueue(queue="py-fifo", url=f"{api}/fifo", body=str(n))
    queue = client.queue.get("py-fifo")
    assert (queue.paused, queue.lag) == (True, 4)
    client.queue.resume("py-fifo")
    assert [body for _, _, body in arrival("/fifo", 4)] == [b"0", b"1", b"2", b"3"]
    client.queue.pause("py-fifo")
    assert "py-fifo" in [queue.name for queue in client.queue.list()]
    client.queue.delete("py-fifo")
    refused(lambda: client.queue.get("py-fifo"), "not found")


def a_duplicate_is_not_delivered():
    publish = lambda: client.message.publish(
        url=f"{api}/twice", body="x", content_based_deduplication=True
    )
    first, second = publish(), publish()
    assert (second.message_id, second.deduplicated) == (first.message_id, True)
    reaches(first.message_id, LogState.DELIVERED)
    assert len(at("/twice")) == 1


def what_fails_is_a_dead_letter():
    sent = client.message.publish(
        url=f"{api}/fail", body="x", retries=1, failure_callback=f"{api}/failed", label="py-dead"
    )
    delivery = arrival("/failed")[0]
    verify(delivery)
    told = json.loads(delivery[2])
    reaches(sent.message_id, LogState.FAILED)
    log = client.log.list(filter={"message_id": sent.message_id, "state": LogState.ERROR}).logs[0]
    assert (log.response_status, log.response_headers is not None) == (500, True)
    letters = client.dlq.list(filter={"label": "py-dead", "response_status": 500}).messages
    assert [letter.dlq_id for letter in letters] == [told["dlqId"]]
    assert client.dlq.get(told["dlqId"]).response_body == "answered"
    assert client.dlq.delete_many([told["dlqId"], "1-1"]) == 1
    refused(lambda: client.dlq.get(told["dlqId"]), "not found")
    client.message.publish(url="http://127.0.0.1:1", body="x", retries=0, label="py-gone")
    until("a dead letter", lambda: client.dlq.list(filter={"label": "py-gone"}).messages)


def messages_are_cancelled():
    publish = lambda: client.message.publish(url=f"{api}/never", body="x", delay="1s").message_id
    one, two, three = publish(), publish(), publish()
    client.message.cancel(one)
    assert client.message.cancel_many([two, "msg_none"]) == 1
    cancelled = client.message.cancel_all()
    assert cancelled == 1, cancelled
    for message_id in (one, two, three):
        reaches(message_id, LogState.CANCELED)
    assert not at("/never")


def flow_control_holds_what_is_too_much():
    flow_control = {"key": "py-flow", "rate": 1, "period": "1h"}
    for _ in range(3):
        client.message.publish(url=f"{api}/flow", body="x", flow_control=flow_control)
    arrival("/flow")
    info = client.flow_control.get("py-flow")
    assert (info.rate_max, info.rate_period, info.wait_list_size) == (1, 3600, 2)
    client.flow_control.pin("py-flow", {"rate": 9, "period": 60})
    arrival("/flow", 3)
    assert client.flow_control.get("py-flow").is_pinned_rate


def what_is_redacted_is_not_shown():
    sent = client.message.publish(url=f"{api}/secret", body="x", redact={"body": True, "header": True})
    assert client.message.get(sent.message_id).body.startswith("REDACTED:")


def deliveries_verify_after_one_rotation_of_the_keys():
    keys = client.signing_key.get()
    assert (keys.current, keys.next) == (CURRENT, NEXT)
    assert client.signing_key.rotate().current == NEXT
    client.message.publish(url=f"{api}/rotated", body="x")
    verify(arrival("/rotated")[0])
    client.signing_key.rotate()
    client.message.publish(url=f"{api}/rotated-twice", body="x")
    delivery = arrival("/rotated-twice")[0]
    try:
        verify(delivery)
    except SignatureError:
        return
    raise AssertionError("a key that was rotated out twice still verifies")


tests = [
    a_message_arrives_verifies_and_is_followed,
    a_url_group_gets_a_message_for_each_endpoint,
    a_batch_takes_urls_groups_and_queues,
    a_queue_delivers_in_order,
    a_duplicate_is_not_delivered,
    what_fails_is_a_dead_letter,
    messages_are_cancelled,
    flow_control_holds_what_is_too_much,
    what_is_redacted_is_not_shown,
    deliveries_verify_after_one_rotation_of_the_keys,
]
for test in tests:
    with contextlib.redirect_stdout(io.StringIO()):  # the SDK prints the logs that it reads
        test()
    print(f"{time.monotonic() - started:6.1f} s  Python: {test.__name__.replace('_', ' ')}")
print(f"{len(tests)} passed, 0 failed")
