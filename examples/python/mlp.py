"""The model of examples/mnist-mlp.ts in NumPy: its loss, gradient and evaluation."""
import numpy as np

EXPERIMENT, STANDARDISE, CLASSES = "mnist-mlp", "none", 10
# Hash of the experiment file that `Model` implements. If that file changes, check `Model` against it, then update this hash.
EXPERIMENT_HASH = "101e004951606c157aece5ca747489a6be583e4c2902f5906ad1e39d5a096aa5"


class Model:
    """One hidden layer of ReLUs with dropout, softmax cross-entropy."""

    def __init__(self, config, inputs, classes=CLASSES):
        knobs = config["hyperparameters"]
        unknown = sorted(set(knobs) - {"units", "dropout"})
        if unknown:
            raise ValueError(f"worker.py does not know the hyperparameters {unknown}; it knows units and dropout")
        units, self.dropout, self.seed = int(knobs.get("units", 256)), knobs.get("dropout", 0.2), int(config["seed"])
        self.shapes = [inputs, units], [units], [units, classes], [classes]
        self.ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        names = "dense_1/kernel", "dense_1/bias", "dense_2/kernel", "dense_2/bias"
        self.tensors = [{"name": n, "shape": s, "role": "trainable"} for n, s in zip(names, self.shapes)]

    def initial(self, seed):
        draw, (kernel, bias, last, last_bias) = np.random.default_rng(seed), self.shapes
        he, glorot = np.sqrt(6 / kernel[0]), np.sqrt(6 / sum(last))
        values = draw.uniform(-he, he, kernel), np.zeros(bias), draw.uniform(-glorot, glorot, last), np.zeros(last_bias)
        return np.concatenate([each.ravel() for each in values]).astype("<f4")

    def forward(self, parameters, inputs, targets, mask=1):
        """@returns mean loss, mean error, and what a gradient needs."""
        w1, b1, w2, b2 = (v.reshape(s) for v, s in zip(np.split(parameters, self.ends[:-1]), self.shapes))
        hidden = np.maximum(inputs @ w1 + b1, 0) * mask
        logs = hidden @ w2 + b2
        wrong = logs.argmax(axis=1) != targets
        logs -= logs.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        loss = -logs[np.arange(len(targets)), targets].mean(dtype="f8")
        return float(loss), float(wrong.mean()), (hidden, logs, w2)

    def gradient(self, parameters, inputs, targets, lease):
        n, draw = len(targets), np.random.default_rng([self.seed, int(lease["epoch"]), int(lease["start"])])
        mask = ((draw.random((n, self.shapes[1][0])) >= self.dropout) / (1 - self.dropout)).astype("f4")
        loss, _, (hidden, logs, w2) = self.forward(parameters, inputs, targets, mask)
        slope = np.exp(logs)
        slope[np.arange(n), targets] -= 1
        slope /= n
        inner = slope @ w2.T * mask * (hidden > 0)
        parts = inputs.T @ inner, inner.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)
        return loss, np.concatenate([each.ravel() for each in parts]).astype("<f4")


def finite(value):
    return value if np.isfinite(value) else None


def means(model, data, parameters, part, rows):
    sums = np.zeros(2)
    for chunk in np.array_split(rows, len(rows) // 4096 + 1):
        sums += np.array(model.forward(parameters, *data.examples(part, chunk))[:2]) * len(chunk)
    return [finite(value) for value in (sums / len(rows)).tolist()]


def evaluate(model, data, parameters, part):
    count, asked = data.count(part), int(data.config["evaluateTraining"])
    loss, error = means(model, data, parameters, part, np.arange(count))
    metrics, everything = {}, data.count("train")
    if part == "validation" and asked > 0:
        rows = np.arange(min(asked, everything)) * everything // min(asked, everything)
        metrics = dict(zip(("trainingLoss", "trainingError"), means(model, data, parameters, "train", rows)))
    return {"loss": loss, "error": error, "examples": count, "metrics": metrics}
