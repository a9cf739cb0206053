import gzip
import struct

import numpy as np
import pytest

from validation.studies import data

RNG = np.random.default_rng(3)


def test_digits_are_split_in_a_fixed_way():
    first, second = data.load(), data.load()
    assert first.train_images.shape == (1347, 1, 8, 8) and first.test_images.shape == (450, 1, 8, 8)
    assert np.array_equal(first.train_images, second.train_images)
    assert first.train_images.min() == 0 and first.train_images.max() == 1
    together = np.concatenate([first.train_images, first.test_images]).reshape(-1, 64)
    counts = np.bincount(first.test_labels)
    assert len(together) == 1797 and counts.min() >= 43 and counts.max() <= 46  # 174 to 183 each, a quarter of them
    values = first.train_images * (first.levels - 1)
    assert np.array_equal(values, np.round(values)) and len(np.unique(values)) == first.levels == 17
    train, test = first.rows()
    assert abs(train.mean()) < 1e-12 and abs(train.std() - 1) < 1e-12 and test.shape == (450, 64)


def write_idx(path, array, magic=None, packed=False):
    head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    content = head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)


def write_mnist(folder, packed=False):
    parts = {}
    for part, count in (("train", 7), ("t10k", 4)):
        images, labels = RNG.integers(0, 256, (count, 28, 28)), RNG.integers(0, 10, count)
        write_idx(folder / f"{part}-images-idx3-ubyte", images, packed=packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels, packed=packed)
        parts[part] = images, labels
    return parts


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    parts = write_mnist(tmp_path, packed)
    found = data.load(tmp_path)
    assert found.name == "MNIST"
    order = np.random.default_rng(0).permutation(7)
    assert np.array_equal(found.train_images * 255, parts["train"][0][order][:, None])
    assert np.array_equal(found.train_labels, parts["train"][1][order])
    assert np.array_equal(np.sort(found.test_labels), np.sort(parts["t10k"][1]))


def python_2_pickle(pixels, labels):
    """Return what Python 2 wrote: a protocol 2 pickle with byte strings as keys and NumPy's array of bytes."""

    def text(string):
        return b"U" + bytes([len(string)]) + string.encode()  # SHORT_BINSTRING

    def integer(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    raw = pixels.astype(np.uint8).tobytes()
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
    items = text("batch_label") + text("testing batch") + text("labels") + numbers + text("data") + reconstruct + state
    return b"\x80\x02}(" + items + b"u."


def write_cifar(folder, binary):
    parts = []
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels, labels = RNG.integers(0, 256, (3, 3072)).astype(np.uint8), RNG.integers(0, 10, 3).astype(np.uint8)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).tobytes())
        else:
            (folder / name).write_bytes(python_2_pickle(pixels, labels))
        parts.append((pixels, labels))
    return parts


@pytest.mark.parametrize("binary", [False, True])
def test_cifar(tmp_path, binary):
    parts = write_cifar(tmp_path, binary)
    found = data.load(tmp_path)
    assert found.name == "CIFAR-10"
    order = np.random.default_rng(0).permutation(15)
    pixels = np.concatenate([part[0] for part in parts[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(found.train_images * 255, pixels[order])
    assert np.array_equal(found.train_labels, np.concatenate([part[1] for part in parts[:5]])[order])
    assert np.array_equal(np.sort(found.test_labels), np.sort(parts[5][1]))


def test_large_sets_are_sampled(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setattr(data, "LIMITS", (5, 2))
    found = data.load(tmp_path)
    assert (len(found.train_images), len(found.test_labels)) == (5, 2)


def refused(folder, match, kind=data.DataError):
    with pytest.raises(kind, match=match):
        data.load(folder)


def test_folders_without_data(tmp_path):
    refused(tmp_path, "has neither train-images-idx3-ubyte.* nor data_batch_1", data.MissingDataError)
    refused(tmp_path / "nowhere", "not a folder", FileNotFoundError)


def test_bad_mnist(tmp_path):
    write_mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    refused(tmp_path, "train-images-idx3-ubyte: begins with 00 00 08 01, expected 00 00 08 03")
    images.write_bytes(whole[:-1])
    refused(tmp_path, r"5503 bytes, expected 5504 for shape \(7, 28, 28\)")
    images.write_bytes(whole[:9])
    refused(tmp_path, "9 bytes, expected at least 16")
    images.write_bytes(gzip.compress(whole)[:-9])
    refused(tmp_path, "not all of a gzip file")
    images.write_bytes(whole)
    write_idx(labels, np.zeros(6))
    refused(tmp_path, "has 7 images, but .*train-labels-idx1-ubyte 6 labels")
    write_idx(labels, np.full(7, 10))
    refused(tmp_path, "labels other than whole numbers from 0 to 9")
    labels.unlink()
    refused(tmp_path, "train-labels-idx1-ubyte.gz: not there", data.MissingDataError)


def test_bad_binary_cifar(tmp_path):
    write_cifar(tmp_path, binary=True)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    refused(tmp_path, r"data_batch_3.bin: 9214 bytes, expected a multiple of 3073")
    path.write_bytes(b"")
    refused(tmp_path, "0 bytes")
    path.write_bytes(b"\x0b" + whole[1:])
    refused(tmp_path, "labels other than")
    path.unlink()
    refused(tmp_path, "data_batch_3.bin: not there", data.MissingDataError)


def test_bad_python_cifar(tmp_path):
    write_cifar(tmp_path, binary=False)
    path = tmp_path / "data_batch_2"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    refused(tmp_path, "data_batch_2: ")
    path.write_bytes(b"<html>")
    refused(tmp_path, "data_batch_2: ")
    path.write_bytes(b"\x80\x02}.")
    refused(tmp_path, "expected a dict with data and labels")
    path.write_bytes(python_2_pickle(np.zeros((3, 3071)), [1, 2, 3]))
    refused(tmp_path, r"data are uint8 \(3, 3071\), expected uint8 \(3, 3072\)")
    path.unlink()
    refused(tmp_path, "data_batch_2: not there", data.MissingDataError)


def test_a_pickle_that_wants_more_is_refused_before_it_runs(tmp_path):
    write_cifar(tmp_path, binary=False)
    trace = tmp_path / "trace"
    (tmp_path / "data_batch_1").write_bytes(f"cos\nmkdir\n(V{trace}\ntR.".encode())
    refused(tmp_path, "asks for os.mkdir")
    assert not trace.exists()


def test_batches_of_an_epoch():
    labels = np.repeat(np.arange(3), (10, 9, 4))
    batches = list(data.shuffled(np.random.default_rng(0), len(labels), 5))
    assert [len(batch) for batch in batches] == [5] * 4
    assert len(np.unique(np.concatenate(batches))) == 20
    of_one = list(data.by_category(np.random.default_rng(0), labels, 4))
    assert sorted(int(labels[batch[0]]) for batch in of_one) == [0, 0, 1, 1, 2]
    assert all(len(np.unique(labels[batch])) == 1 and len(np.unique(batch)) == 4 for batch in of_one)
