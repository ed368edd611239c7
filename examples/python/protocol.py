"""What every worker computes alike, whatever its model is: frames, random numbers, data (docs/protocol.md)."""
import base64
import json
import struct

import msgpack
import numpy as np

MASK = 0xFFFFFFFF


def encode(header, payload=b""):
    packed = msgpack.packb(header)
    return b"DP\x01\x00" + struct.pack("<I", len(packed)) + packed + bytes(-len(packed) % 8) + payload


def decode(frame):
    (length,) = struct.unpack_from("<4xI", frame)
    return msgpack.unpackb(frame[8 : 8 + length]), frame[8 + length + -length % 8 :]


def floats(payload, encoding="f32"):
    if encoding == "bf16":
        return (np.frombuffer(payload, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(payload, "<f4")


def rows(tables, payload, encoding):
    """Rows of tables, in the order of their names; encoding None: keys alone. Gives the rows and what follows them."""
    found = []
    for table in tables:
        count = int.from_bytes(payload[:4], "little")
        row = {"keys": np.frombuffer(payload[4 : 4 + 4 * count], "<u4").tolist()}
        payload = payload[4 + 4 * count :]
        if encoding is not None:
            n = count * table["width"]
            size = {"f32": 4 * n, "bf16": -(-2 * n // 4) * 4, "int8": 4 * count + -(-n // 4) * 4}[encoding]
            part, payload = payload[:size], payload[size:]
            if encoding == "int8":
                scales = np.frombuffer(part[: 4 * count], "<f4")
                values = np.frombuffer(part[4 * count : 4 * count + n], "i1") * scales.repeat(table["width"])
            else:
                values = floats(part, encoding)[:n]
            row["values"] = values.tolist()
        found.append(row)
    return found, payload


# Random numbers: unsigned 32 bits, so products and sums are masked.


def mix(a, b):
    h = a ^ (b * 0x9E3779B1 & MASK)
    for shift, factor in (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1), (15, 0x2C1B3C6D), (12, 0x297A2D39):
        h = (h ^ h >> shift) * factor & MASK
    return h ^ h >> 15


def rotl(x, k):
    return (x << k | x >> 32 - k) & MASK


def generator(seed, stream):
    """Yields `bits()` for ever."""
    base = mix(seed & MASK, mix(seed >> 32, stream & MASK))
    s0, s1, s2, s3 = mix(base, 1), mix(base, 2), mix(base, 3), mix(base, 4) | 1
    while True:
        yield rotl(s1 * 5 & MASK, 7) * 9 & MASK
        t = s1 << 9 & MASK
        s2, s3 = s2 ^ s0, s3 ^ s1
        s1, s0 = s1 ^ s2, s0 ^ s3
        s2, s3 = s2 ^ t, rotl(s3, 11)


def below(bits, n):
    limit = 2**32 - 2**32 % n
    return next(draw for draw in bits if draw < limit) % n


def permutation(seed, stream, n):
    order, bits = list(range(n)), generator(seed, stream)
    for i in range(n - 1, 0, -1):
        j = below(bits, i + 1)
        order[i], order[j] = order[j], order[i]
    return np.array(order, "<i4")


def order_of(config, epoch, count):
    return permutation(int(config["seed"]), 0x10000000 + int(epoch), count)


def split(config, classes):
    """The numbers of the training examples that train, and of those that validate."""
    n, seed, folds = len(classes), int(config["seed"]), config["validation"]["folds"]
    order = permutation(seed if config["splitSeed"] is None else int(config["splitSeed"]), 2, n)
    if folds:
        wanted, apart = config["validation"]["fold"], config["validation"]["apart"]
        stratified = config["validation"]["stratified"]
        dealt = order[np.argsort(classes[order], kind="stable")] if stratified else order
        fold_of = np.empty(n, int)
        fold_of[dealt] = np.arange(n) % folds
        out = fold_of[order] == wanted
        validation, train = order[out], order[~out & (fold_of[order] != apart)]
    else:
        count = min(n - 1, max(1, int(n * config["validationFraction"] + 0.5)))
        validation, train = order[:count], order[count:]
    train = train[: max(1, int(len(train) * config["trainFraction"] + 0.5))]
    if config["bootstrap"]:
        bits = generator(seed, 4)
        train = train[[below(bits, len(train)) for _ in train]]
    return np.sort(train), np.sort(validation)


def digest(pieces):
    a, b, c, d, total = 0x2B7E1516, 0x28AED2A6, 0xABF71588, 0x09CF4F3C, 0
    before = np.array([0x239B961B, 0xAB0E9789, 0x38B34AE5, 0xA1E38B93], "u4")
    turn = np.array([15, 16, 17, 18], "u4")
    for piece in pieces:
        total += len(piece)
        filled = struct.pack("<QQ", len(piece), 0) + piece + bytes(16 - len(piece) % 16)
        words = np.frombuffer(filled, "<u4").reshape(-1, 4)
        # What a word becomes by itself is NumPy's; what depends on the word before cannot be.
        for start in range(0, len(words), 65536):
            k = words[start : start + 65536] * before
            k = (k << turn | k >> 32 - turn) * np.roll(before, -1)
            for w0, w1, w2, w3 in k.tolist():
                a ^= w0
                a = ((a << 19 | a >> 13) + b) * 5 + 0x561CCD1B & MASK
                b ^= w1
                b = ((b << 17 | b >> 15) + c) * 5 + 0x0BCAA747 & MASK
                c ^= w2
                c = ((c << 15 | c >> 17) + d) * 5 + 0x96CD1C35 & MASK
                d ^= w3
                d = ((d << 13 | d >> 19) + a) * 5 + 0x32AC3B17 & MASK
    lanes = [h ^ total & MASK for h in (a, b, c, d)]
    for finish in True, False:
        lanes[0] = sum(lanes) & MASK
        lanes[1:] = [h + lanes[0] & MASK for h in lanes[1:]]
        if finish:
            for shift, factor in (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1):
                lanes = [(h ^ h >> shift) * factor & MASK for h in lanes]
    return "".join(f"{h:08x}" for h in lanes)


def text(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def doubles(base):
    return np.frombuffer(base64.b64decode(base), "<f8")


class Data:
    """The examples of a run as all its workers have them."""

    def __init__(self, config, given, class_count, kind, *, source="", facts=None, classes=None, names=None):
        """`given`: part → (inputs, targets), before the split. `facts`: of the run that a fork comes from."""
        self.config, self.orders = config, {}
        train = given["train"]
        rows = (None, None) if "validation" in given else split(config, train[1])
        self.parts = {
            "train": train if rows[0] is None else [column[rows[0]] for column in train],
            "validation": given["validation"] if rows[1] is None else [column[rows[1]] for column in train],
            "test": given.get("test", [column[:0] for column in train]),
        }
        self.transform = facts["transform"] if facts else self.fit(kind)
        kind, scale = self.transform["kind"], self.transform["scale"]
        pieces = [text([class_count, classes])]
        for part in [name for name in ("train", "validation", "test") if name in given]:
            for values, own in zip(given[part], (names, None)):
                pieces += [text([part, values.dtype.name, values.shape, own, None]), values.tobytes()]
        raw = "2:" + digest(pieces)
        pieces = [text([raw, kind, scale])]
        for chosen in rows:
            pieces += [text(None), b""] if chosen is None else [text("rows"), chosen.astype("<i4").tobytes()]
        self.summary = {f"{part}Count": len(targets) for part, (_, targets) in self.parts.items()}
        self.summary |= {"rawFingerprint": raw, "fingerprint": "2:" + digest(pieces), "depends": [], "source": source}
        columns = [{"kind": column.dtype.name, "shape": column.shape[1:]} for column in train]
        self.facts = {"transform": self.transform, "inputs": columns[0], "targets": columns[1]}
        self.facts |= {"classCount": class_count, "classes": classes, "inputNames": names, "targetNames": None}

    def fit(self, kind):
        inputs = self.parts["train"][0]
        scale = 1 / 255 if inputs.dtype == np.uint8 else 1
        columns = {"none": np.empty((1, 0)), "global": inputs.reshape(-1, 1), "feature": inputs.reshape(len(inputs), -1)}
        values = columns[kind] * np.float64(scale)
        deviation = np.where(np.ptp(values, axis=0) > 0, values.std(axis=0), 1)
        packed = [base64.b64encode(each.tobytes()).decode() for each in (values.mean(axis=0), deviation)]
        return {"kind": kind, "scale": scale, "mean": packed[0], "deviation": packed[1]}

    def examples(self, part, rows):
        """Inputs [n, numbers] as the model gets them, and targets [n]."""
        if part == "trainAndValidation":
            split_at = len(self.parts["train"][1])
            both = [self.examples("train", rows[rows < split_at]), self.examples("validation", rows[rows >= split_at] - split_at)]
            return [np.concatenate(columns) for columns in zip(*both)]
        inputs, targets = self.parts[part]
        values = inputs[rows].reshape(len(rows), -1) * np.float64(self.transform["scale"])
        if self.transform["kind"] != "none":
            values = (values - doubles(self.transform["mean"])) / doubles(self.transform["deviation"])
        return values.astype("f4"), targets[rows]

    def count(self, part):
        names = ("train", "validation") if part == "trainAndValidation" else (part,)
        return sum(len(self.parts[name][1]) for name in names)

    def minibatch(self, lease):
        key, start = (lease["part"], int(lease["epoch"])), int(lease["start"])
        if key not in self.orders:
            # Epochs overlap by a few minibatches: the last order is still needed.
            self.orders = dict([*self.orders.items()][-1:])
            self.orders[key] = order_of(self.config, key[1], self.count(key[0]))
        return self.examples(key[0], self.orders[key][start : start + lease["count"]])
