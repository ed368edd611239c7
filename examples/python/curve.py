"""Plots the curves of a run: python3 curve.py RUN [--server http://127.0.0.1:7420] [--out curve.png]

Needs matplotlib; if the server requires a token, set DOWNPOUR_TOKEN.
"""
import argparse, json, os, urllib.request

options = argparse.ArgumentParser()
options.add_argument("run", nargs="?", help="default: the newest")
options.add_argument("--server", default=os.environ.get("DOWNPOUR_SERVER", "http://127.0.0.1:7420"))
options.add_argument("--out", default="curve.png")
options = options.parse_args()


def get(path):
    token = os.environ.get("DOWNPOUR_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(options.server + path, headers=headers)) as answer:
        return json.load(answer)


for run in get("/status")["runs"]:
    print(f"{run['id']}: {run['phase']} at step {run['step']}, training loss {run['trainingLoss']}")
    newest = run["id"]

name = options.run or newest
metrics = get(f"/runs/{name}/metrics?points=500")
validation = [e for e in metrics["evaluations"] if e["part"] == "validation"]

import matplotlib.pyplot as plt

plt.plot(metrics["training"]["step"], metrics["training"]["loss"], label="training, smoothed")
plt.plot([e["step"] for e in validation], [e["loss"] for e in validation], "o-", label="validation")
plt.title(name)
plt.xlabel("step")
plt.ylabel("loss")
plt.yscale("log")
plt.legend()
plt.savefig(options.out)
print(f"written: {options.out}")
