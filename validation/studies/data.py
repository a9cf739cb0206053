"""Images: scikit-learn's digits, or files of MNIST or CIFAR-10 as they are distributed.

`load` tells the formats apart by the names of the files in a folder:

======== =================================================================================
MNIST    ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k``,
         plain or with ``.gz`` (idx files, http://yann.lecun.com/exdb/mnist/)
CIFAR-10 ``data_batch_1`` … ``data_batch_5``, ``test_batch`` (the Python version), or the
         same with ``.bin`` (the binary version; https://www.cs.toronto.edu/~kriz/cifar.html)
======== =================================================================================
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LIMITS", "DataError", "Dataset", "MissingDataError", "by_category", "load", "recognize", "shuffled"]

Array = npt.NDArray[Any]

LIMITS = (10_000, 2_000)
"""How many images of a file's training and test set are taken: those of a shuffle with seed 0."""
_SPLIT = 0.25
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
_CIFAR_SHAPE = (3, 32, 32)


class DataError(ValueError):
    """A file is not what it should be."""


class MissingDataError(DataError, FileNotFoundError):
    """A file is not there."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images for training and for testing.

    Attributes
    ----------
    name : str
    levels : int
        How many values a pixel may have, equally far apart.
    train_images, test_images : ndarray, shape (samples, channels, height, width)
        Binary64, from 0 to 1.
    train_labels, test_labels : ndarray of int, shape (samples,)
        From 0 to 9.
    """

    name: str
    levels: int
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array

    def rows(self) -> tuple[Array, Array]:
        """Return training and test images as rows, less the mean and over the standard deviation of the former."""
        mean, deviation = self.train_images.mean(), self.train_images.std()
        train, test = (
            ((images - mean) / deviation).reshape(len(images), -1) for images in (self.train_images, self.test_images)
        )
        return train, test


def load(path: Path | None = None) -> Dataset:
    """Return the images of a folder, or without one scikit-learn's digits, split in a fixed way.

    Raises
    ------
    DataError, MissingDataError
        If a file is not what it should be or is not there; the message names it.
    """
    if path is None:
        return _digits()
    name, read = recognize(path)
    (train_images, train_labels), (test_images, test_labels) = (
        _sample(*read(path, train), limit) for train, limit in zip((True, False), LIMITS, strict=True)
    )
    return Dataset(name, 256, train_images / 255, train_labels, test_images / 255, test_labels)


def recognize(path: Path) -> tuple[str, Callable[[Path, bool], tuple[Array, Array]]]:
    """Return what is in a folder and what reads it, by the names of the first files.

    Raises
    ------
    MissingDataError
        If there is no such folder, or it has none of them.
    """
    if not path.is_dir():
        raise MissingDataError(f"{path}: not a folder; expected one with files of MNIST or CIFAR-10")
    for first, name, read in (
        ("train-images-idx3-ubyte", "MNIST", _mnist),
        ("train-images-idx3-ubyte.gz", "MNIST", _mnist),
        (_CIFAR_TRAIN[0], "CIFAR-10", _cifar_python),
        (f"{_CIFAR_TRAIN[0]}.bin", "CIFAR-10", _cifar_binary),
    ):
        if (path / first).exists():
            return name, read
    raise MissingDataError(
        f"{path}: has neither train-images-idx3-ubyte[.gz] (MNIST) nor data_batch_1[.bin] (CIFAR-10)"
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = digits.images[:, None] / 16, digits.target
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=_SPLIT, random_state=0, stratify=labels
    )
    return Dataset("digits", 17, train_images, train_labels, test_images, test_labels)


def _sample(images: Array, labels: Array, limit: int) -> tuple[Array, Array]:
    chosen = np.random.default_rng(0).permutation(len(images))[:limit]
    return images[chosen], labels[chosen].astype(np.intp)


def _mnist(folder: Path, train: bool) -> tuple[Array, Array]:
    part = "train" if train else "t10k"
    image_path, images = _idx(folder / f"{part}-images-idx3-ubyte", 3)
    label_path, labels = _idx(folder / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path} has {len(images)} images, but {label_path} {len(labels)} labels")
    _check_labels(label_path, labels)
    return images[:, None], labels


def _idx(path: Path, axes: int) -> tuple[Path, Array]:
    """Return which file it was, and its bytes as an array: two zeros, 8 for bytes, the rank, the sizes, the data."""
    if not path.exists():
        path = path.with_name(f"{path.name}.gz")
    content = _content(path)
    magic = bytes((0, 0, 8, axes))
    if content[:4] != magic:
        raise DataError(f"{path}: begins with {content[:4].hex(' ')}, expected {magic.hex(' ')}")
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{path}: {len(content)} bytes, expected at least {start}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes, expected {expected} for shape {shape}")
    return path, np.frombuffer(content[start:], np.uint8).reshape(shape)


def _cifar_binary(folder: Path, train: bool) -> tuple[Array, Array]:
    width = 1 + int(np.prod(_CIFAR_SHAPE))  # the label, then red, green and blue
    images, labels = [], []
    for name in _CIFAR_TRAIN if train else _CIFAR_TEST:
        path = folder / f"{name}.bin"
        content = _content(path)
        if not content or len(content) % width:
            raise DataError(f"{path}: {len(content)} bytes, expected a multiple of {width}")
        records = np.frombuffer(content, np.uint8).reshape(-1, width)
        _check_labels(path, records[:, 0])
        labels.append(records[:, 0])
        images.append(records[:, 1:].reshape(-1, *_CIFAR_SHAPE))
    return np.concatenate(images), np.concatenate(labels)


def _cifar_python(folder: Path, train: bool) -> tuple[Array, Array]:
    width = int(np.prod(_CIFAR_SHAPE))
    images, labels = [], []
    for name in _CIFAR_TRAIN if train else _CIFAR_TEST:
        path = folder / name
        content = _content(path)
        try:
            batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # what comes of bytes that are no pickle
            raise DataError(f"{path}: not a pickle, or cut short ({type(error).__name__}: {error})") from None
        if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
            raise DataError(f"{path}: expected a dict with data and labels")
        pixels, own = batch[b"data"], np.asarray(batch[b"labels"])
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(own), width):
            found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise DataError(f"{path}: data are {found}, expected uint8 {(len(own), width)}")
        _check_labels(path, own)
        images.append(pixels.reshape(-1, *_CIFAR_SHAPE))
        labels.append(own)
    return np.concatenate(images), np.concatenate(labels)


class _Unpickler(pickle.Unpickler):
    """It makes arrays of numbers, and refuses whatever else a pickle may ask for."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed object."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which a batch of CIFAR-10 does not need")
        return self._ALLOWED[module, name]


def _content(path: Path) -> bytes:
    """Return a file's bytes, decompressed if they are gzip's."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"{path}: not there") from None
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError) as error:
        raise DataError(f"{path}: not all of a gzip file ({error})") from None


def _check_labels(path: Path, labels: Array) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels <= 9)).all():
        raise DataError(f"{path}: labels other than whole numbers from 0 to 9")


def shuffled(generator: np.random.Generator, count: int, size: int) -> Iterator[Array]:
    """Yield the indices of one epoch's batches, all of one size; what remains is left out."""
    order = generator.permutation(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def by_category(generator: np.random.Generator, labels: Array, size: int) -> Iterator[Array]:
    """Yield the indices of one epoch's batches, each of one category, in random order."""
    batches = []
    for label in np.unique(labels):
        (own,) = np.nonzero(labels == label)
        batches += [own[batch] for batch in shuffled(generator, len(own), size)]
    for place in generator.permutation(len(batches)):
        yield batches[place]
