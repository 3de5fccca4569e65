"""Data of `nomad2018`: oxide crystals from Kaggle's archive, or made up like them."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes, hold_out

TEST_FRAC = {"real": 0.1, "lookalike": 0.7}
NUM_CRYSTALS = 800
TARGETS = ("formation_energy_ev_natom", "bandgap_energy_ev")
GROUPS = (12, 33, 167, 194, 206, 227)
GROUP_ENERGY = (0.02, 0.05, 0.03, 0.06, 0.01, 0.08)
GROUP_GAP = (0.1, 0.0, 0.25, -0.3, 0.05, -0.1)
NUM_ATOMS = (40, 80, 30, 30, 80, 80)
METALS = ("Al", "Ga", "In")
# What a written geometry holds at most; the real ones hold every atom.
MAX_WRITTEN_ATOMS = 20


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv, the sample and a geometry.xyz for every crystal."""
    n = NUM_CRYSTALS
    group = rng.integers(0, len(GROUPS), n)
    shares = rng.dirichlet([0.9, 0.9, 0.9], n).round(4)
    shares[:, 2] = (1 - shares[:, 0] - shares[:, 1]).clip(0).round(4)
    aluminium, gallium, indium = shares.T
    atoms = np.asarray(NUM_ATOMS)[group]
    size = 4.6 + 0.5 * gallium + 1.2 * indium + rng.normal(0, 0.05, n)
    stretch = rng.uniform(0.9, 1.4, (n, 3))
    sides = size[:, None] * stretch * (atoms[:, None] / 30) ** (1 / 3)
    tilt = rng.normal(0, 3.0, (n, 3)) * (rng.random((n, 1)) < 0.4)
    mixing = aluminium * indium + 0.3 * aluminium * gallium + 0.2 * gallium * indium
    strain = np.square(stretch - stretch.mean(axis=1, keepdims=True)).mean(axis=1)
    energy = (
        np.asarray(GROUP_ENERGY)[group]
        + 0.65 * mixing
        + 1.2 * strain
        + 0.001 * np.abs(tilt).sum(axis=1)
        + rng.normal(0, 0.008, n)
    )
    gap = (
        0.6
        + 4.3 * aluminium
        + 2.2 * gallium
        + 0.7 * indium
        + np.asarray(GROUP_GAP)[group]
        - 1.1 * mixing
        + rng.normal(0, 0.08, n)
    )
    table = pd.DataFrame(
        {"id": np.arange(1, n + 1), "spacegroup": np.asarray(GROUPS)[group]}
    )
    table["number_of_total_atoms"] = atoms.astype(float)
    for name, share in zip(METALS, shares.T, strict=True):
        table[f"percent_atom_{name.lower()}"] = share
    for number in range(3):
        table[f"lattice_vector_{number + 1}_ang"] = sides[:, number].round(4)
    for number, name in enumerate(("alpha", "beta", "gamma")):
        table[f"lattice_angle_{name}_degree"] = (90 + tilt[:, number]).round(4)
    table[TARGETS[0]] = energy.clip(0).round(4)
    table[TARGETS[1]] = gap.clip(0).round(4)
    for row in range(n):
        folder = raw / "train" / str(row + 1)
        folder.mkdir(parents=True)
        text = _geometry(
            sides[row], shares[row], min(atoms[row], MAX_WRITTEN_ATOMS), rng
        )
        (folder / "geometry.xyz").write_text(text)
    # Kaggle's own test rows have no labels; nothing is made from them.
    table.to_csv(raw / "train.csv", index=False)
    others = table.head(8).drop(columns=list(TARGETS))
    others.to_csv(raw / "test.csv", index=False)
    sample = others[["id"]].assign(**{TARGETS[0]: 0.1779, TARGETS[1]: 1.8892})
    sample.to_csv(raw / "sample_submission.csv", index=False)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training rows, split and numbered anew on both sides."""
    table = pd.read_csv(find_file(raw, "train.csv"))
    root = find_file(raw, "train.csv").parent
    geometries = {
        path.parent.name: path
        for path in sorted(root.rglob("geometry.xyz"))
        if "train" in path.parts[len(root.parts) :]
    }
    public: dict[str, bytes | Path] = {}
    sides: list[pd.DataFrame] = []
    for name, rows in zip(
        ("train", "test"), hold_out(table, TEST_FRAC[source]), strict=True
    ):
        old_ids = rows["id"].astype(str).tolist()
        new_ids = rng.permutation(len(rows)) + 1
        for old, new in zip(old_ids, new_ids, strict=True):
            public[f"{name}/{new}/geometry.xyz"] = geometries[old]
        sides.append(rows.assign(id=new_ids).sort_values("id"))
    train, test = sides
    public["train.csv"] = csv_bytes(train)
    public["test.csv"] = csv_bytes(test.drop(columns=list(TARGETS)))
    return PreparedFiles(
        public=public, labels=test.filter(["id", *TARGETS]), num_train=len(train)
    )


def _geometry(
    sides: np.ndarray, shares: np.ndarray, num_atoms: int, rng: np.random.Generator
) -> str:
    """Returns the lattice and the places of atoms, two metals to three oxygens."""
    lines = ["#=======================================================", "#made up"]
    vectors = np.diag(sides)
    lines += ["lattice_vector " + " ".join(f"{x:.7f}" for x in v) for v in vectors]
    metals = rng.choice(METALS, num_atoms, p=shares / shares.sum())
    names = np.where(np.arange(num_atoms) % 5 < 2, metals, "O")
    places = rng.random((num_atoms, 3)) * sides
    for place, name in zip(places, names, strict=True):
        lines.append("atom " + " ".join(f"{x:.7f}" for x in place) + f" {name}")
    return "\n".join(lines) + "\n"
