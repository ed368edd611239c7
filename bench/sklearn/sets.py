"""Writes data sets of scikit-learn as pandas exports them, and says what scikit-learn makes of them.

python3 sets.py FOLDER NAMES SEEDS, both with commas between: FOLDER/NAME-SEED/{train,test}.csv.
"""

import json
import os
import sys
import warnings

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

warnings.simplefilter("ignore", ConvergenceWarning)

folder, names, seeds = sys.argv[1:4]
results = []
for name in names.split(","):
    table = getattr(datasets, f"load_{name}")(as_frame=True).frame
    classes = table["target"].dtype.kind == "i"
    for seed in map(int, seeds.split(",")):
        train, test = train_test_split(
            table, test_size=0.25, random_state=seed, stratify=table["target"] if classes else None
        )
        home = os.path.join(folder, f"{name}-{seed}")
        os.makedirs(home)
        # What people do: with the index and without.
        index = seed % 2 == 1
        train.to_csv(os.path.join(home, "train.csv"), index=index)
        test.to_csv(os.path.join(home, "test.csv"), index=index)

        def error(model):
            model = make_pipeline(StandardScaler(), model)
            model.fit(train.drop(columns="target"), train["target"])
            answers = model.predict(test.drop(columns="target"))
            wrong = answers != test["target"] if classes else np.abs(answers - test["target"])
            return float(wrong.mean())

        mlp = MLPClassifier(random_state=seed) if classes else MLPRegressor(random_state=seed)
        ridge = RidgeClassifier() if classes else Ridge()
        facts = dict(set=name, seed=seed, index=index, task="classification" if classes else "regression")
        results.append(dict(facts, train=len(train), test=len(test), mlp=error(mlp), ridge=error(ridge)))
print(json.dumps(results))
