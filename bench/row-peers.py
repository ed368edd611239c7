"""Pushes of rows to other systems, for rows.ts. A line with seconds in, a line with updates/s out.

    python row-peers.py PEER ROWS WIDTH TOUCHED

Each update sends the gradients of TOUCHED rows of a table, and brings the values of as many others. The server is a process of
its own, on loopback; `tensorflow-local` is the same in one process, without a wire.
"""
import os
import socket
import subprocess
import sys
import time

PEER, ROWS, WIDTH, TOUCHED = sys.argv[1], *map(int, sys.argv[2:5])
ROLE = os.environ.get("ROW_PEER_ROLE", "worker")
RATE = 1e-3
TAILS = 16


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(environment):
    """The same program in another role. It ends with this one, whose end closes its standard input."""
    return subprocess.Popen(
        [sys.executable, *sys.argv], env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def end_with_parent():
    """A server that blocks ends when its standard input does."""
    import threading

    def wait():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def drawn():
    """Keys that rise, and gradients, of several pushes."""
    import numpy

    draw = numpy.random.default_rng(1)
    keys = [numpy.sort(draw.choice(ROWS, TOUCHED, replace=False)).astype(numpy.int64) for _ in range(TAILS)]
    return keys, numpy.full((TOUCHED, WIDTH), 1e-3, numpy.float32)


def serve_lines(update):
    for i in range(3):
        update(i)
    print("ready", flush=True)
    for line in sys.stdin:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            update(count)
            count += 1
        print(count / (time.perf_counter() - began), flush=True)


def ps_lite():
    """MXNet's dist_async kvstore: ps-lite with sparse keys. The server updates by row-wise Adagrad."""
    if ROLE == "worker":
        port = str(free_port())
        common = {
            "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_PS_ROOT_PORT": port,
            "DMLC_NUM_SERVER": "1",
            "DMLC_NUM_WORKER": "1",
            "DMLC_INTERFACE": "lo",
        }
        for role in ("scheduler", "server"):
            start({**common, "DMLC_ROLE": role, "ROW_PEER_ROLE": role})
        os.environ.update(common, DMLC_ROLE="worker")
    else:
        end_with_parent()
    import mxnet as mx  # As scheduler and server it serves here, until it ends.

    store = mx.kv.create("dist_async")
    store.set_optimizer(mx.optimizer.contrib.GroupAdaGrad(learning_rate=RATE))
    store.init("word", mx.nd.random.uniform(shape=(ROWS, WIDTH)).tostype("row_sparse"))
    keys, values = drawn()
    gradients = [mx.nd.sparse.row_sparse_array((values, own), shape=(ROWS, WIDTH)) for own in keys]
    wanted = [mx.nd.array(own, dtype="int64") for own in keys]
    out = mx.nd.sparse.zeros("row_sparse", (ROWS, WIDTH))

    def update(i):
        store.push("word", gradients[i % TAILS])
        store.row_sparse_pull("word", out=out, row_ids=wanted[(i + 1) % TAILS])
        out.wait_to_read()

    serve_lines(update)


def tensorflow(local):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    device = "/job:localhost/device:CPU:0"
    if not local:
        port = os.environ.get("ROW_PEER_PORT") or str(free_port())
        cluster = tf.train.ClusterSpec({"ps": [f"127.0.0.1:{port}"]})
        if ROLE == "ps":
            end_with_parent()
            tf.distribute.Server(cluster, job_name="ps", task_index=0).join()
        start({"ROW_PEER_ROLE": "ps", "ROW_PEER_PORT": port})
        tf.config.experimental_connect_to_cluster(cluster)
        device = "/job:ps/task:0"
    with tf.device(device):
        table = tf.Variable(tf.random.uniform((ROWS, WIDTH)))
        optimizer = tf.compat.v1.train.AdagradOptimizer(RATE)
    keys, values = drawn()

    @tf.function(reduce_retracing=True)
    def both(own, gradients, wanted):
        with tf.device(device):
            done = optimizer.apply_gradients([(tf.IndexedSlices(gradients, own, (ROWS, WIDTH)), table)])
            with tf.control_dependencies([done]):
                return tf.gather(table, wanted)

    def update(i):
        both(tf.constant(keys[i % TAILS]), tf.constant(values), tf.constant(keys[(i + 1) % TAILS])).numpy()

    serve_lines(update)


def torch_update(own, values, wanted):
    """On the server."""
    import torch

    word, optimizer = TORCH_TABLE
    word.weight.grad = torch.sparse_coo_tensor(own[None], values, word.weight.shape, check_invariants=False)
    optimizer.step()
    with torch.no_grad():
        return word.weight[wanted]


def pytorch():
    """nn.EmbeddingBag(sparse=True) behind torch.distributed.rpc."""
    global TORCH_TABLE
    import torch
    from torch.distributed import rpc

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if ROLE == "ps":
        end_with_parent()
        word = torch.nn.EmbeddingBag(ROWS, WIDTH, sparse=True)
        TORCH_TABLE = word, torch.optim.Adagrad(word.parameters(), RATE)
        rpc.init_rpc("ps", rank=1, world_size=2)
        rpc.shutdown()
        return
    os.environ["MASTER_PORT"] = str(free_port())
    start({"ROW_PEER_ROLE": "ps"})
    rpc.init_rpc("worker", rank=0, world_size=2)
    keys, values = drawn()
    keys = [torch.from_numpy(own) for own in keys]
    values = torch.from_numpy(values)
    serve_lines(lambda i: rpc.rpc_sync("ps", torch_update, (keys[i % TAILS], values, keys[(i + 1) % TAILS])))
    os._exit(0)


{
    "ps-lite": ps_lite,
    "tensorflow": lambda: tensorflow(False),
    "tensorflow-local": lambda: tensorflow(True),
    "torch": pytorch,
}[PEER]()
