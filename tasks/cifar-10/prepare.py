"""Data of `cifar-10`: tiny photos of ten classes, or tiny drawings of ten classes.

The archive is the binary version (https://www.cs.toronto.edu/~kriz/cifar.html): the
Python version is pickled, and reading a pickle runs whatever it holds.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, Source, csv_bytes

SIZE = 32
NUM_CLASSES = 10
NUM_BATCHES = 5
NUM_PER_BATCH = 120
NUM_TEST = 600


def write_archive(raw: Path, rng: np.random.Generator) -> None:
    """Writes five batches and the test batch: label byte, then three planes."""
    folder = raw / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, NUM_BATCHES + 1):
        (folder / f"data_batch_{number}.bin").write_bytes(_batch(NUM_PER_BATCH, rng))
    (folder / "test_batch.bin").write_bytes(_batch(NUM_TEST, rng))
    (folder / "batches.meta.txt").write_text("\n".join(f"kind {i}" for i in range(10)))


def from_archive(raw: Path, source: Source, rng: np.random.Generator) -> PreparedFiles:
    """Returns all training images, and the test images without labels, shuffled."""
    del source  # The split is CIFAR-10's own.
    batches = [_read(raw, f"data_batch_{i}.bin") for i in range(1, NUM_BATCHES + 1)]
    labels = np.concatenate([label for label, _ in batches])
    images = np.concatenate([image for _, image in batches])
    test_labels, test_images = _read(raw, "test_batch.bin")
    order, test_order = rng.permutation(len(labels)), rng.permutation(len(test_labels))
    train = pd.DataFrame({"id": np.arange(len(labels)), "label": labels[order]})
    one_hot = np.eye(NUM_CLASSES, dtype=int)[test_labels[test_order]]
    hidden = pd.DataFrame(one_hot, columns=[str(i) for i in range(NUM_CLASSES)])
    hidden.insert(0, "id", np.arange(len(hidden)))
    return PreparedFiles(
        public={
            "train.csv": csv_bytes(train),
            "test.csv": csv_bytes(hidden.filter(["id"])),
            "train_images.npy": _npy(images[order]),
            "test_images.npy": _npy(test_images[test_order]),
        },
        labels=hidden,
        num_train=len(train),
    )


def _batch(num_images: int, rng: np.random.Generator) -> bytes:
    labels = rng.permutation(np.arange(num_images) % NUM_CLASSES).astype(np.uint8)
    images = np.stack([_draw(label, rng) for label in labels])
    planes = images.transpose(0, 3, 1, 2).reshape(num_images, -1)
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


def _draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Returns an image: five shapes, each on warm or on cold ground."""
    shape, is_cold = label % 5, label >= 5
    ground = np.array([120, 120, 120]) + (1 - 2 * is_cold) * np.array([28, 0, -28])
    image = np.zeros((SIZE, SIZE, 3)) + ground + rng.normal(0, 22, 3)
    y, x = np.mgrid[:SIZE, :SIZE]
    center_y, center_x = rng.uniform(11, 21, 2)
    radius = rng.uniform(6, 10)
    dy, dx = np.abs(y - center_y), np.abs(x - center_x)
    masks = (
        dy**2 + dx**2 < radius**2,
        np.maximum(dy, dx) < 0.85 * radius,
        (np.maximum(dy, dx) < radius) & ((y // 2) % 2 == 0),
        (np.maximum(dy, dx) < radius) & ((x // 2) % 2 == 0),
        (np.minimum(dy, dx) < 0.3 * radius) & (np.maximum(dy, dx) < 1.1 * radius),
    )
    image[masks[shape]] += rng.choice([-1, 1]) * rng.uniform(40, 80) + rng.normal(
        0, 15, 3
    )
    return np.clip(image + rng.normal(0, 22, image.shape), 0, 255).astype(np.uint8)


def _read(raw: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and (number, row, column, channel) images of a batch."""
    data = np.fromfile(find_file(raw, name), dtype=np.uint8)
    records = data.reshape(-1, 1 + 3 * SIZE * SIZE)
    images = records[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return records[:, 0].astype(int), images


def _npy(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(images))
    return buffer.getvalue()
