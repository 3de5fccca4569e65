"""Data of `ogbn-arxiv`: OGB's citation graph of papers, or a graph made up like it."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes

NUM_PAPERS = 1_800
NUM_FIELDS = 40
NUM_FEATURES = 128
NUM_CITATIONS = 7
SAME_FIELD_FRAC = 0.62
YEARS = (2013, 2014, 2015, 2016, 2017, 2018, 2019, 2020)
YEAR_FRACS = (0.06, 0.08, 0.11, 0.13, 0.15, 0.18, 0.24, 0.05)
LAST_TRAIN_YEAR = 2017
LAST_VALID_YEAR = 2018


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes OGB's raw files: edges, features, labels and years, and its split."""
    n = NUM_PAPERS
    year = rng.choice(YEARS, n, p=YEAR_FRACS)
    field = rng.choice(NUM_FIELDS, n, p=rng.dirichlet(np.full(NUM_FIELDS, 4.0)))
    centers = rng.normal(0, 0.06, (NUM_FIELDS, NUM_FEATURES))
    features = centers[field] + rng.normal(0, 0.14, (n, NUM_FEATURES))
    citing = np.repeat(np.arange(n), rng.integers(1, 2 * NUM_CITATIONS, n))
    cited = rng.integers(0, n, len(citing))
    is_same = rng.random(len(citing)) < SAME_FIELD_FRAC
    members = [np.flatnonzero(field == number) for number in range(NUM_FIELDS)]
    for edge in np.flatnonzero(is_same):
        cited[edge] = rng.choice(members[field[citing[edge]]])
    keep = (citing != cited) & (year[cited] <= year[citing])
    edges = np.unique(np.stack([citing[keep], cited[keep]], axis=1), axis=0)
    tables = {
        "raw/edge.csv.gz": edges,
        "raw/node-feat.csv.gz": features.round(4),
        "raw/node-label.csv.gz": field,
        "raw/node_year.csv.gz": year,
        "split/time/train.csv.gz": np.flatnonzero(year <= LAST_TRAIN_YEAR),
        "split/time/valid.csv.gz": np.flatnonzero(year == LAST_VALID_YEAR),
        "split/time/test.csv.gz": np.flatnonzero(year > LAST_VALID_YEAR),
    }
    for name, values in tables.items():
        path = raw / "arxiv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(values).to_csv(path, header=False, index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns the graph with labels of papers until 2018; later ones are hidden.

    Nodes are numbered anew: OGB's labels are public in OGB's order.
    """
    del source  # Both are split by year.
    label = _read(raw, "node-label.csv.gz")[:, 0]
    year = _read(raw, "node_year.csv.gz")[:, 0]
    new_id = rng.permutation(len(label))
    old_id = np.argsort(new_id)
    nodes = pd.DataFrame({"node_id": np.arange(len(label)), "year": year[old_id]})
    nodes["label"] = label[old_id]
    edges = new_id[_read(raw, "edge.csv.gz")]
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    features = io.BytesIO()
    values = _read(raw, "node-feat.csv.gz").astype(np.float32)
    np.save(features, values[old_id])
    is_hidden = nodes["year"] > LAST_VALID_YEAR
    train, test = nodes.loc[~is_hidden], nodes.loc[is_hidden]
    return PreparedFiles(
        public={
            "edges.csv": csv_bytes(pd.DataFrame(edges, columns=["citing", "cited"])),
            "features.npy": features.getvalue(),
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(test.drop(columns="label")),
        },
        labels=test.filter(["node_id", "label"]),
        num_train=len(train),
    )


def _read(raw: Path, name: str) -> np.ndarray:
    return pd.read_csv(find_file(raw, name), header=None).to_numpy()
