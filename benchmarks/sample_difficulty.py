"""Score bags of words on the dev splits of data/sample, to compare with the demo's fine-tuned encoder.

    python -m benchmarks.sample_difficulty

SST: TF-IDF of words and word pairs, logistic regression. Pairs: how many words and letters two sentences share,
with the TF-IDF of shared and of unshared words; logistic regression for Quora, ridge regression for STS. Chance is the
share of the commonest class on the dev split, or a correlation of 0; its standard error is the binomial one, or
1 / sqrt(n - 1) for the correlation.
"""
import csv
import json
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from files.errors import Parser, run_script

SAMPLE_DIR = Path(__file__).parent.parent / "data" / "sample"


def read(name):
    """Return the columns of a sample file after its index and ids: lists of sentences, then the labels as an array."""
    with open(SAMPLE_DIR / name, encoding="utf-8", newline="") as file:
        columns = list(zip(*list(csv.reader(file, delimiter="\t"))[1:]))
    return *map(list, columns[2:-1]), np.array(columns[-1], dtype=float)


def pair_features(vectorizers, scaler, first, second):
    """Return the features of N pairs, a sparse (N, F) matrix that does not depend on the order within a pair."""
    dense, sparse = [], []
    for vectorizer in vectorizers:
        u, v = vectorizer.transform(first), vectorizer.transform(second)
        a, b = (u > 0).astype(float), (v > 0).astype(float)
        common = np.asarray(a.multiply(b).sum(1)).ravel()
        sizes = np.sort([np.asarray(x.sum(1)).ravel() for x in (a, b)], axis=0)
        cosine = np.asarray(u.multiply(v).sum(1)).ravel()
        dense += [cosine, common / (sizes.sum(0) - common + 1e-9), common / (sizes[0] + 1e-9), *sizes]
        sparse += [u.multiply(v), abs(u - v)]
    # squares, because half the words in common may say more than none or all of them
    dense = np.stack(dense + [x**2 for x in dense], axis=1)
    dense = scaler.transform(dense) if hasattr(scaler, "mean_") else scaler.fit_transform(dense)
    return hstack([csr_matrix(dense), *sparse[:2]]).tocsr()


def bag_of_words(task, train, dev):
    """Return the predictions for `dev` of a regression that was fitted to `train`, its strength chosen within train."""
    if task == "sst":
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        x_train, x_dev = vectorizer.fit_transform(train[0]), vectorizer.transform(dev[0])
    else:
        vectorizers = [
            TfidfVectorizer(token_pattern=r"\w+").fit(train[0] + train[1]),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4)).fit(train[0] + train[1]),
        ]
        scaler = StandardScaler()
        x_train, x_dev = (pair_features(vectorizers, scaler, *split[:2]) for split in (train, dev))
    if task == "sts":
        return RidgeCV(np.logspace(-2, 4, 13)).fit(x_train.toarray(), train[-1]).predict(x_dev.toarray())
    search = GridSearchCV(LogisticRegression(max_iter=5000), {"C": np.logspace(-3, 3, 13)}, cv=5)
    return search.fit(x_train, train[-1]).predict(x_dev)


def main():
    Parser(description=__doc__.splitlines()[0]).parse_args()
    result = {}
    files = [("sst", "ids-sst", "accuracy"), ("para", "quora", "accuracy"), ("sts", "sts", "Pearson")]
    print("task  metric     train   dev   chance    s.e.  chance + 3 s.e.  bag of words")
    for task, stem, metric in files:
        train, dev = read(f"{stem}-train.csv"), read(f"{stem}-dev.csv")
        truth, prediction, n = dev[-1], bag_of_words(task, train, dev), len(dev[-1])
        if metric == "Pearson":
            chance, error, score = 0.0, (n - 1) ** -0.5, np.corrcoef(truth, prediction)[0, 1]
        else:
            chance = np.unique(truth, return_counts=True)[1].max() / n
            error, score = (chance * (1 - chance) / n) ** 0.5, (truth == prediction).mean()
        bar = chance + 3 * error
        print(f"{task:<6}{metric:<10}{len(train[-1]):>6}{n:>6}{chance:>9.3f}{error:>8.3f}{bar:>17.3f}{score:>14.3f}")
        row = {"chance": chance, "standard_error": error, "to_reach": bar, "bag_of_words": score}
        result[task] = {key: round(float(value), 4) for key, value in row.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
