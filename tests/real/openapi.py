"""Runs schemathesis on an amended description of QStash's API. Started by `openapi`.

Checked of each answer: no 5xx, no status and no content type that is not described, no body
that breaks its schema. What is amended stands here, each with its reason; where QStash's
documentation and the description disagree, the development server's module docs say so too.
"""

import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

import yaml

description, url, token, amended, seed = sys.argv[1:]
api = yaml.safe_load(pathlib.Path(description).read_text())
ERROR = {
    "description": "refused",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
MESSAGES = {"type": "array", "items": {"$ref": "#/components/schemas/PublishToUrlGroupResponse"}}


def call(method, path, body=None, headers=None):
    """What the server answers: its status and the JSON of its body."""
    headers = {"Authorization": f"Bearer {token}", **(headers or {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as refusal:
        return refusal.status, json.loads(refusal.read())


# Something to find: made-up names and ids alone would see nothing but 404.
GROUP, QUEUE, KEY = "a-group", "a-queue", "a-key"
call("POST", f"/v2/topics/{GROUP}/endpoints", {"endpoints": [{"url": "http://127.0.0.1:1/", "name": "one"}, {"url": "http://127.0.0.1:1/two"}]})
later = {
    "Upstash-Delay": "1d",
    "Upstash-Label": "x,y",
    "Upstash-Callback": "http://127.0.0.1:1/",
    "Upstash-Callback-Forward-X": "y",
    "Upstash-Flow-Control-Key": KEY,
    "Upstash-Flow-Control-Value": "rate=5,period=1m,parallelism=2",
    "Upstash-Retry-Delay": "1000",
    "Upstash-Timeout": "5s",
}
ids = [call("POST", f"/v2/publish/{GROUP}", {"n": n}, later)[1][0]["messageId"] for n in range(20)]
for n in range(20):
    call("POST", f"/v2/enqueue/{QUEUE}/{GROUP}", n, {"Upstash-Retries": "0"})
while len(dead := call("GET", "/v2/dlq")[1]["messages"]) < 20:
    pass
known = {
    "destination": [GROUP, "none"],
    "queueName": [QUEUE, "none"],
    "urlGroupName": [GROUP],
    "messageId": ids,
    "dlqId": [message["dlqId"] for message in dead],
    "flowControlKey": [KEY],
}

for path, operations in api["paths"].items():
    for method, operation in operations.items():
        answers = operation["responses"]
        # Every call needs the token, and every value can be wrong: described for some calls only.
        answers.setdefault("401", ERROR)
        answers.setdefault("400", ERROR)
        parameters = {(one["in"], one["name"]): one for one in operation.get("parameters", [])}
        # One parameter of one call is there twice.
        operation["parameters"] = list(parameters.values())
        for (place, name), parameter in parameters.items():
            if place == "path" and name in known:
                parameter["schema"] = {"anyOf": [{"enum": known[name]}, {"type": "string"}]}

for path in ("/v2/publish/{destination}", "/v2/enqueue/{queueName}/{destination}"):
    answers = api["paths"][path]["post"]["responses"]
    # Both kinds of answer are objects in which all is optional, so that `oneOf` takes neither;
    # and for a URL group the SDKs read an array.
    schema = {"anyOf": [{"$ref": "#/components/schemas/PublishResponse"}, MESSAGES]}
    answers["200"]["content"]["application/json"]["schema"] = schema
    answers["202"] = answers["200"]  # a duplicate, by the documentation
    answers["404"] = ERROR  # an unknown URL group, by the SDKs
    answers["412"] = ERROR  # too many queues: described where they are made by hand

batch = api["paths"]["/v2/batch"]["post"]["responses"]
item = {"anyOf": [{"$ref": "#/components/schemas/PublishResponse"}, MESSAGES, {"$ref": "#/components/schemas/Error"}]}
# By the documentation an item has the answer that it would have alone.
batch["200"]["content"]["application/json"]["schema"]["items"] = item
batch["412"] = ERROR
endpoints = api["paths"]["/v2/topics/{urlGroupName}/endpoints"]
endpoints["post"]["responses"]["412"] = ERROR  # too many groups or endpoints
endpoints["delete"]["responses"]["404"] = ERROR  # an unknown URL group, by old documentation
# The SDKs count on what the description does not require.
api["components"]["schemas"]["PublishResponse"]["required"] = ["messageId"]
api["components"]["schemas"]["Message"]["required"] = ["messageId", "url", "method", "maxRetries", "notBefore", "createdAt"]
api["components"]["schemas"]["DLQMessage"]["properties"]["dlqId"] = {"type": "string"}
api["components"]["schemas"]["DLQMessage"]["required"] = ["dlqId", "messageId", "url", "method", "responseStatus"]
api["components"]["schemas"]["LogEntry"]["required"] = ["time", "messageId", "state", "url"]

# Schedules are not part of the server, and it says so.
scheduled = [path for path in api["paths"] if path.startswith("/v2/schedules")]
for path in scheduled:
    for method in api["paths"].pop(path):
        status, answer = call(method.upper(), path.replace("{", "").replace("}", ""))
        assert status == 501 and "not part of this development server" in answer["error"], (method, path, answer)
print(f"{len(scheduled)} paths of schedules answer 501")

pathlib.Path(amended).write_text(json.dumps(api))
checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
command = ["-m", "schemathesis.cli", "run", amended, "--url", url, "--header", f"Authorization: Bearer {token}"]
command += ["--checks", checks, "--phases", "examples,coverage,fuzzing", "--max-time", "100", "--seed", seed]
command += ["--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"]
sys.exit(subprocess.run([sys.executable, *command], timeout=150).returncode)
