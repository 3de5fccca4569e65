"""Data of `home-data-for-ml-course`: house sales in Ames, or sales made up."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes

# Hidden share of the rows, at the end of the file as in MLAgentBench.
TEST_FRAC = {"real": 0.2, "lookalike": 0.7}
NUM_HOUSES = 1_400
NEIGHBORHOODS = (
    "NAmes",
    "CollgCr",
    "OldTown",
    "Edwards",
    "Somerst",
    "NridgHt",
    "BrDale",
)
NEIGHBORHOOD_LEVEL = (0.0, 0.12, -0.18, -0.15, 0.15, 0.35, -0.3)
QUALITIES = ("Po", "Fa", "TA", "Gd", "Ex")
ZONES = ("RL", "RM", "FV", "RH", "C (all)")
STYLES = ("1Story", "2Story", "1.5Fin", "SLvl")
GARAGES = ("Attchd", "Detchd", "BuiltIn")
DESCRIPTION = """\
SalePrice: price in dollars (to predict)
MSSubClass: kind of dwelling, a code
MSZoning: zoning class
LotFrontage: feet of street along the lot (gaps)
LotArea: square feet
Alley: kind of alley access (mostly empty: none)
Neighborhood: where in Ames
HouseStyle: storeys
OverallQual, OverallCond: rates from 1 to 10
YearBuilt, YearRemodAdd: years
ExterQual, KitchenQual, BsmtQual: Ex, Gd, TA, Fa, Po (empty basement: none)
TotalBsmtSF, 1stFlrSF, 2ndFlrSF, GrLivArea: square feet
FullBath, BedroomAbvGr, TotRmsAbvGrd, Fireplaces: counts
FireplaceQu: quality (empty: no fireplace)
GarageType, GarageYrBlt, GarageCars, GarageArea: garage (empty: none)
WoodDeckSF, OpenPorchSF: square feet
MoSold, YrSold: month and year of the sale
SaleCondition: Normal, Abnorml or Partial
"""


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes train.csv, test.csv, the sample and data_description.txt."""
    n = NUM_HOUSES
    quality = np.clip(rng.normal(6.1, 1.4, n).round(), 1, 10).astype(int)
    place = rng.choice(7, n, p=[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    built = np.clip(1_950 + 9 * (quality - 4) + rng.normal(0, 18, n), 1_875, 2_010)
    first = np.exp(rng.normal(7.0, 0.28, n)).round()
    is_tall = rng.random(n) < 0.42
    second = np.where(is_tall, first * rng.uniform(0.5, 1.0, n), 0).round()
    living = first + second
    basement = np.where(rng.random(n) < 0.97, first * rng.uniform(0.7, 1.05, n), 0)
    cars = np.clip(rng.normal(quality / 3.4, 0.6, n).round(), 0, 4).astype(int)
    fires = rng.binomial(2, np.clip((quality - 3) / 10, 0, 1))
    lot = np.exp(rng.normal(9.1, 0.45, n)).round()
    condition = np.clip(rng.normal(5.5, 1.1, n).round(), 1, 10).astype(int)
    sale = rng.choice(["Normal", "Abnorml", "Partial"], n, p=[0.85, 0.07, 0.08])
    kitchen = _rate(quality, rng)
    log_price = (
        10.55
        + 0.085 * quality
        + 0.45 * np.log(living / 1_000)
        + 0.00016 * basement
        + 0.06 * cars
        + 0.045 * fires
        + 0.0016 * (built - 1_950)
        + 0.035 * (condition - 5)
        + 0.08 * np.log(lot / 9_000)
        + 0.05 * (kitchen - 2)
        + np.asarray(NEIGHBORHOOD_LEVEL)[place]
        - 0.12 * (sale == "Abnorml")
        + rng.normal(0, 0.07, n)
        + 1.0
    )
    has_garage = cars > 0
    table = pd.DataFrame(
        {
            "Id": np.arange(1, n + 1),
            "MSSubClass": np.where(is_tall, 60, 20),
            "MSZoning": rng.choice(ZONES, n, p=[0.78, 0.15, 0.045, 0.015, 0.01]),
            "LotFrontage": _gaps(np.sqrt(lot) * rng.uniform(0.5, 0.9, n), 0.18, rng),
            "LotArea": lot.astype(int),
            "Alley": _only(rng.random(n) < 0.06, np.full(n, "Grvl")),
            "Neighborhood": np.asarray(NEIGHBORHOODS)[place],
            "HouseStyle": np.where(is_tall, "2Story", rng.choice(STYLES, n)),
            "OverallQual": quality,
            "OverallCond": condition,
            "YearBuilt": built.astype(int),
            "YearRemodAdd": np.maximum(built, rng.integers(1_950, 2_011, n)).astype(
                int
            ),
            "ExterQual": np.asarray(QUALITIES)[_rate(quality, rng)],
            "KitchenQual": np.asarray(QUALITIES)[kitchen],
            "BsmtQual": _only(basement > 0, np.asarray(QUALITIES)[_rate(quality, rng)]),
            "TotalBsmtSF": basement.astype(int),
            "1stFlrSF": first.astype(int),
            "2ndFlrSF": second.astype(int),
            "GrLivArea": living.astype(int),
            "FullBath": np.clip((living / 900).round(), 1, 3).astype(int),
            "BedroomAbvGr": np.clip(rng.normal(living / 520, 0.6, n), 1, 6).astype(int),
            "TotRmsAbvGrd": np.clip(rng.normal(living / 240, 0.9, n), 3, 13).astype(
                int
            ),
            "Fireplaces": fires,
            "FireplaceQu": _only(fires > 0, rng.choice(["Gd", "TA"], n)),
            "GarageType": _only(has_garage, rng.choice(GARAGES, n)),
            "GarageYrBlt": np.where(has_garage, built.round(), np.nan),
            "GarageCars": cars,
            "GarageArea": (cars * rng.normal(265, 25, n)).round().astype(int),
            "WoodDeckSF": (rng.exponential(190, n) * (rng.random(n) < 0.48)).astype(
                int
            ),
            "OpenPorchSF": (rng.exponential(85, n) * (rng.random(n) < 0.55)).astype(
                int
            ),
            "MoSold": rng.integers(1, 13, n),
            "YrSold": rng.integers(2_006, 2_011, n),
            "SaleCondition": sale,
            "SalePrice": (np.exp(log_price) / 100).round().astype(int) * 100,
        }
    )
    # Kaggle's own test rows have no prices; nothing is made from them.
    table.to_csv(raw / "train.csv", index=False)
    others = table.head(20).assign(Id=np.arange(n + 1, n + 21))
    others.drop(columns="SalePrice").to_csv(raw / "test.csv", index=False)
    sample = others[["Id"]].assign(SalePrice=180_000.0)
    sample.to_csv(raw / "sample_submission.csv", index=False)
    (raw / "data_description.txt").write_text(DESCRIPTION)


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns Kaggle's training rows; the last ones in the file are hidden.

    Ids are numbered anew: the complete data set with all prices is public, and Kaggle's
    ids are its row numbers.
    """
    table = pd.read_csv(find_file(raw, "train.csv"))
    table["Id"] = rng.permutation(len(table)) + 1
    num_train = len(table) - round(TEST_FRAC[source] * len(table))
    train = table.head(num_train).sort_values("Id")
    test = table.tail(len(table) - num_train).sort_values("Id")
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(test.drop(columns="SalePrice")),
            "data_description.txt": find_file(raw, "data_description.txt"),
        },
        labels=test.filter(["Id", "SalePrice"]),
        num_train=len(train),
    )


def _rate(quality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a rate from 0 to 4 that goes with the overall quality."""
    return np.clip(
        (quality / 2.4 + rng.normal(0, 0.6, len(quality))).round(), 0, 4
    ).astype(int)


def _gaps(values: np.ndarray, frac: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(values)) < frac, np.nan, values.round())


def _only(mask: np.ndarray, values: np.ndarray) -> pd.Series:
    """Returns the values where the mask holds, and gaps elsewhere."""
    return pd.Series(values).where(pd.Series(mask))
