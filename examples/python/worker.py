"""A worker in NumPy for runs of examples/mnist-mlp.ts, written from docs/protocol.md.

    pip install numpy websockets msgpack
    python3 examples/python/worker.py --server ws://127.0.0.1:7420
"""
import argparse
import json
import os
import random
import secrets
import signal
import threading
import time

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from digits import load
from mlp import CLASSES, EXPERIMENT, EXPERIMENT_HASH, STANDARDISE, Model, evaluate, finite
from protocol import Data, decode, encode, floats


def may_connect_again(close, code):
    lasting = close in (1002, 1007, 1009, 4401, 4403, 4404, 4409) and code != "DP_NAME_TAKEN"
    return not lasting and code != "DP_STATE_FENCED"


def wait_asked_for(lost):
    """Seconds for which the server wants to hear nothing; it says so when workers of a token connect too often."""
    asked = lost.response.headers.get("Retry-After", "") if isinstance(lost, InvalidStatus) else ""
    return min(int(asked), 600) if asked.isdigit() else 0


class Worker:
    """One connection after another, until it is stopped or the run that it was started for has ended."""

    def __init__(self, options):
        self.options, self.stop, self.socket, self.sequence = options, threading.Event(), None, 0
        self.hello = {"type": "hello", "worker": options.name, "incarnation": secrets.token_hex(8), "run": options.run}
        self.hello |= {"experiments": {EXPERIMENT: options.hash}, "engine": "numpy", "device": "cpu"}
        # The run, its data and model, its newest parameters; what the server may ask for once more.
        self.run, self.data, self.model, self.parameters, self.seen = (None,) * 5
        self.pushed, self.evaluated, self.rejoined = None, None, False

    def send(self, header, payload=b""):
        self.socket.send(encode(header, payload))

    def loop(self):
        token, attempt = os.environ.get("DOWNPOUR_TOKEN"), 0
        options = {"additional_headers": {"Authorization": f"Bearer {token}"} if token else {}, "ping_interval": 10}
        while not self.stop.is_set():
            try:
                with connect(self.options.server + "/ws", compression=None, max_size=2**30, **options) as self.socket:
                    self.send(self.hello)
                    while not self.stop.is_set():
                        try:
                            header, payload = decode(self.socket.recv(timeout=0.5))
                        except TimeoutError:
                            continue
                        attempt = attempt if header["type"] == "error" else 0
                        getattr(self, header["type"])(header, payload)
                    self.send({"type": "leave", "failure": None})
            except (OSError, ConnectionClosed, InvalidHandshake) as lost:
                closed = getattr(lost, "rcvd", None)
                refused = isinstance(lost, InvalidStatus) and lost.response.status_code not in (429, 503)
                if refused or (closed and not may_connect_again(closed.code, closed.reason)):
                    raise SystemExit(f"the server refuses this worker: {lost}") from lost
                pause, attempt = random.random() * min(15, 0.25 * 2**attempt) + wait_asked_for(lost), attempt + 1
                print(f"no connection ({lost}); the next attempt is in {pause:.1f} s", flush=True)
                self.stop.wait(pause)

    # What to do with each message.

    def assign(self, header, payload):
        try:
            if self.run != header["run"] or self.data.config != header["config"]:
                self.pushed = self.evaluated = self.seen = None
                self.prepare(header, json.loads(payload) if payload else None)
        except (OSError, ValueError) as error:
            self.send({"type": "leave", "failure": {"code": "DP_EXPERIMENT_INVALID", "message": str(error)[:2000]}})
            raise SystemExit(str(error)) from error
        facts = json.dumps(self.data.facts).encode()
        join = {"type": "join", "run": self.run, "experimentHash": header["experimentHash"], "seen": self.seen}
        join |= {"tensors": self.model.tensors, "data": self.data.summary, "errorMeasure": "misclassification"}
        self.send({**join, "facts": "json"}, facts + b" " * (-len(facts) % 4))
        self.rejoined = True

    def prepare(self, header, facts):
        given, source = load()
        model = Model(header["config"], given["train"][0][0].size)
        if len(header["shards"]) > 0 and model.ends[-1] >= 2 * 16384:
            raise ValueError("the parameters are on several shards, which worker.py does not know")
        self.data = Data(header["config"], given, CLASSES, STANDARDISE, source=source, facts=facts)
        self.run, self.model = header["run"], model
        print(f"run {self.run}: {self.data.count('train')} training examples, {source}", flush=True)

    def initialise(self, header, payload):
        answer = {"type": "initialised", "run": self.run, "grant": header["grant"]}
        self.send(answer, self.model.initial(int(header["seed"])).tobytes())

    def work(self, header, payload):
        for answer in header["acknowledgements"]:
            self.pushed = None if self.pushed and self.pushed[0]["sequence"] <= answer["sequence"] else self.pushed
            if answer["code"] in ("DP_TENSOR_SIZE", "DP_GRADIENT_NOT_FINITE"):
                print(answer["code"], answer["message"], flush=True)
        version = {"generation": header["generation"], "step": header["step"]}
        self.seen = max(self.seen or version, version, key=lambda each: (each["generation"], each["step"]))
        values = floats(payload, header["encoding"])[: self.model.ends[-1]]
        if header["evaluation"]:
            asked = header["evaluation"]["id"]
            if self.evaluated is None or self.evaluated["evaluation"] != asked:
                result = evaluate(self.model, self.data, values, header["evaluation"]["part"])
                self.evaluated = {"type": "evaluated", "run": self.run, "evaluation": asked, **result}
            self.send(self.evaluated)
            return
        self.parameters = (values, version) if len(values) else self.parameters
        if self.pushed and self.rejoined:
            self.send(*self.pushed)
        elif header["leases"] and not self.pushed:
            self.push(header["leases"][0])
        self.rejoined = False

    def push(self, lease):
        started, (values, version) = time.monotonic(), self.parameters
        loss, gradient = self.model.gradient(values, *self.data.minibatch(lease), lease)
        self.sequence += 1
        push = {"type": "push", "run": self.run, "sequence": self.sequence, "lease": lease["id"], **version}
        push |= {"loss": finite(loss), "computeMs": 1000 * (time.monotonic() - started), "encoding": "f32"}
        self.pushed = push, gradient.tobytes()
        self.send(*self.pushed)

    def end(self, header, payload):
        print(f"run {header['run']} {header['phase']}: {header['reason']}", flush=True)
        self.run = self.pushed = self.evaluated = None
        if self.options.run:
            self.stop.set()

    def idle(self, header, payload):
        print("nothing to do", header.get("missing", ""), flush=True)

    def error(self, header, payload):
        print(header["code"], header["message"], flush=True)

    def standby(self, header, payload):
        """Where to go when the server is lost: this worker waits for its own server instead."""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--server", default=os.environ.get("DOWNPOUR_SERVER", "ws://127.0.0.1:7420"))
    arguments.add_argument("--run", help="this run alone, and then end; default: any run of " + EXPERIMENT)
    arguments.add_argument("--name", default=f"numpy-{os.getpid()}", help="unique among the workers of the server")
    arguments.add_argument("--hash", default=EXPERIMENT_HASH, help="hash of the experiment version to train")
    worker = Worker(arguments.parse_args())
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: worker.stop.set())
    worker.loop()
