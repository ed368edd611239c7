"""Compares what these files compute with docs/protocol-vectors.json: python3 check_vectors.py [FILE]"""
import hashlib
import json
import math
import sys
from pathlib import Path

import msgpack
import numpy as np

import mlp
import protocol
import worker

DEFAULT = Path(__file__).resolve().parents[2] / "docs" / "protocol-vectors.json"
vectors = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else DEFAULT).read_text("utf8"))
counts, wrong = {}, []


def same(name, ours, theirs):
    counts[name] = counts.get(name, 0) + 1
    if ours != theirs:
        wrong.append(f"{name}: {str(ours)[:200]} instead of {str(theirs)[:200]}")


def close(name, ours, theirs):
    ours, theirs = np.asarray(ours, "f8").ravel(), np.asarray(theirs, "f8").ravel()
    fits = ours.shape == theirs.shape and bool(np.all(np.abs(ours - theirs) <= 1e-5))
    same(name, "right" if fits else f"off: {ours[:5]}", "right" if fits else f"{theirs[:5]}")


def array(column):
    return np.array(column["values"], column["kind"]).reshape(column["shape"])


for each in vectors["mix"]:
    same("mix", protocol.mix(each["a"], each["b"]), each["mixed"])

for each in vectors["random"]:
    def bits():
        return protocol.generator(each["seed"], each["stream"])

    def drawn(draw, wanted):
        source = bits()
        return [draw(source) for _ in wanted]

    def normal(source):
        u, v = next(source) / 2**32, next(source) / 2**32
        return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)

    same("random", drawn(next, each["bits"]), each["bits"])
    same("random", drawn(lambda source: next(source) / 2**32, each["uniform"]), each["uniform"])
    for group in each["below"]:
        same("random", drawn(lambda source: protocol.below(source, group["bound"]), group["numbers"]), group["numbers"])
    close("random", drawn(normal, each["normal"]), each["normal"])

for each in vectors["orders"]:
    same("orders", protocol.order_of(each, each["epoch"], each["count"]).tolist(), each["examples"])

for each in vectors["leases"]:
    parts = {name: [{"part": name, "row": row} for row in range(each[name])] for name in ("train", "validation", "test")}
    parts["trainAndValidation"] = parts["train"] + parts["validation"]
    lease, rows = each["lease"], parts[each["lease"]["part"]]
    order = protocol.order_of(each, lease["epoch"], len(rows))[lease["start"] : lease["start"] + lease["count"]]
    same("leases", [rows[i] for i in order], each["rows"])

for each in vectors["splits"]:
    train, validation = protocol.split(each["config"], np.array(each["classes"]))
    same("splits", [train.tolist(), validation.tolist()], [each["train"], each["validation"]])

for each in vectors["digests"]:
    same("digests", protocol.digest([bytes.fromhex(piece) for piece in each["pieces"]]), each["digest"])

for each in vectors["data"]:
    given = {name: (array(part["inputs"]), array(part["targets"])) for name, part in each["parts"].items()}
    names = {"classes": each["classes"], "names": each["parts"]["train"]["inputs"]["names"]}
    summary, facts = each["summary"], each["facts"]
    data = protocol.Data(each["config"], given, each["classCount"], each["standardise"], source=summary["source"], **names)
    same("data", data.summary, summary)
    for field in "mean", "deviation":
        close("data", protocol.doubles(facts["transform"][field]), each[field])
        close("data", protocol.doubles(data.facts["transform"][field]), each[field])
    same("data", json.loads(json.dumps({**data.facts, "transform": None})), {**facts, "transform": None})
    close("data", data.examples("train", np.arange(2))[0], each["standardised"])

for each in vectors["experimentHashes"]:
    sha = hashlib.sha256()
    for name, source in sorted(each["files"].items()):
        source = source.replace("\r\n", "\n").encode()
        sha.update(f"{name}\n{len(source)}\n".encode() + source)
    same("experimentHashes", sha.hexdigest(), each["hash"])

for each in vectors["partitions"]:
    sizes = [math.prod(shape) for shape in each["shapes"]]
    size, ranges, start = sum(sizes), [], 0
    count = max(1, min(each["shards"], size // 16384))
    share = size / count

    def boundary(wanted):
        first = 0
        for length in sizes:
            if wanted < first + length:
                break
            first += length
        if first == wanted:
            return wanted
        if length >= share / 16:
            return first + min(length, 256 * math.floor((wanted - first) / 256 + 0.5))
        return first if wanted - first < first + length - wanted else first + length

    for k in range(1, count + 1):
        end = size if k == count else boundary(math.floor(share * k + 0.5))
        if end > start:
            ranges.append([start, end])
        start = max(start, end)
    same("partitions", ranges, each["ranges"])

for each in vectors["rowShards"]:
    shards = each["shards"]
    owners = [(key - key // shards * shards + protocol.mix(key // shards, 8) % shards) % shards for key in each["keys"]]
    same("rowShards", owners, each["owners"])

for each in vectors["losses"]:
    x, z, smoothing, classes = np.array(each["predictions"]), np.array(each["targets"]), each["labelSmoothing"], each["classCount"]
    if each["loss"] in ("softmaxCrossEntropy", "negativeLogLikelihood"):
        wrong_answers = x.argmax(axis=1) != z
        truth = np.eye(classes)[z] * (1 - smoothing) + smoothing / classes
        logs = x - x.max(axis=1, keepdims=True)
        logs = logs - np.log(np.exp(logs).sum(axis=1, keepdims=True)) if each["loss"] == "softmaxCrossEntropy" else x
        value = -(truth * logs).sum(axis=1).mean()
    else:
        x, wrong_answers = x[:, 0], None
        if each["loss"] == "sigmoidCrossEntropy":
            wrong_answers = (x > 0) != (z > 0.5)
            z = z * (1 - smoothing) + smoothing / 2
            value = (np.maximum(x, 0) - x * z + np.log1p(np.exp(-np.abs(x)))).mean()
        else:
            value = (np.abs(x - z) if each["loss"] == "meanAbsoluteError" else (x - z) ** 2).mean()
    close("losses", value, each["value"])
    close("losses", value if wrong_answers is None else wrong_answers.mean(), each["error"])

for each in vectors["gradients"]:
    given = {name: (array(part["inputs"]), array(part["targets"])) for name, part in each["parts"].items()}
    data = protocol.Data(each["config"], given, each["classCount"], mlp.STANDARDISE)
    model = mlp.Model(each["config"], given["train"][0][0].size, each["classCount"])
    same("gradients", model.tensors, each["tensors"])
    parameters = np.array(each["parameters"], "f4")
    for push in each["pushes"]:
        loss, gradient = model.gradient(parameters, *data.minibatch(push["lease"]), push["lease"])
        close("gradients", loss, push["loss"])
        close("gradients", gradient, push["gradient"])
    for wanted in each["evaluations"]:
        result = mlp.evaluate(model, data, parameters, wanted["part"])
        same("gradients", result["examples"], wanted["examples"])
        same("gradients", sorted(result["metrics"]), sorted(wanted["metrics"]))
        close("gradients", [result["loss"], result["error"]], [wanted["loss"], wanted["error"]])
        for metric, value in wanted["metrics"].items():
            close("gradients", result["metrics"][metric], value)

for each in vectors["errors"]:
    same("errors", worker.may_connect_again(each["close"], each["code"]), each["connectAgain"])

for each in vectors["vectors"]:
    frame = bytes.fromhex(each["frame"])
    header, payload = protocol.decode(frame)
    same("vectors", header, each["header"])
    # What this side writes is read as the same, though maps and numbers may be in other bytes.
    again = protocol.encode(header, payload)
    same("vectors", protocol.decode(again), (header, payload))
    same("vectors", again[:4], frame[:4])
    encoding, numbers = header.get("encoding", "f32"), each.get("numbers")
    if "rows" in each:
        rows = header.get("rows")
        if rows:
            start = len(payload) - rows["bytes"] - rows.get("wanted", 0)
            payload, tail = payload[:start], payload[start:]
            kind = rows["encoding"]
        else:
            tail, kind = payload, None if header["type"] == "pullRows" else encoding
        try:
            found, rest = protocol.rows(vectors["tables"], tail, kind)
        except ValueError as error:
            same("tables", str(error), each["rows"])
            continue
        same("tables", [row["keys"] for row in found], [row["keys"] for row in each["rows"]])
        # int8 keeps 8 bits of a number.
        for row, wanted in zip(found, each["rows"]):
            ours, theirs = (np.asarray(each.get("values", []), "f8") for each in (row, wanted))
            most = np.abs(theirs).max(initial=0) / 250 if kind == "int8" else 0
            fits = ours.shape == theirs.shape and bool((np.abs(ours - theirs) <= most).all())
            same("tables", ours.tolist() if not fits else "right", theirs.tolist() if not fits else "right")
        if rows and rows.get("wanted"):
            same("tables", protocol.rows(vectors["tables"], rest, None)[0], [{"keys": [3]}, {"keys": []}])
    if numbers and header["type"] != "push":
        same("vectors", protocol.floats(payload, encoding).tolist()[: len(numbers)], numbers)
    elif numbers and encoding == "f32":
        same("vectors", protocol.floats(payload).tolist(), numbers)

print(json.dumps({"compared": counts, "wrong": wrong}))
sys.exit(1 if wrong else 0)
