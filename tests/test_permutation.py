"""The indexed order: frozen vectors, bijection, random access and statistics, each also on a
broken version."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import pickle
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seedregistry import SeedRegistry
from seedregistry.data import permutation
from seedregistry.data.permutation import IndexedPermutation
from seedregistry.errors import InvalidOptionError, OutOfRangeError

VECTORS = json.loads(
    (Path(__file__).parent / "data" / "permutation.json").read_text(encoding="utf-8")
)
KEY = bytes(range(32))
LARGEST = 2**62
WALKED = 128 * 33  # a * b of the network for 4,097 elements

keys = st.binary(min_size=32, max_size=32)
large_sizes = st.one_of(st.integers(4097, 10**6), st.integers(4097, LARGEST))


def key_number(number: int) -> bytes:
    return hashlib.sha256(b"test key %d" % number).digest()


# The rules again, written on their own from the text of docs/orders.md, on Python's integers.


def ref_words(key: bytes, size: int, count: int, width: int) -> list:
    data = hashlib.shake_128(b"seedregistry/1/permutation" + key + size.to_bytes(8, "big")).digest(
        count * width
    )
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def ref_mix(half: int, first: int, second: int) -> int:
    word = (half + first) % 2**32
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= word >> 13
    word = (word + second) % 2**32
    return word * 0xC2B2AE35 % 2**32


def ref_walk(value: int, k: int, b: int, words: list) -> int:
    right, left = divmod(value, 2**k)
    for number in range(10):
        first, second = words[2 * number], words[2 * number + 1]
        if number % 2 == 0:
            right = (right + ref_mix(left, first, second) * b // 2**32) % b
        else:
            left = (left + ref_mix(right, first, second) * 2**k // 2**32) % 2**k
    return right * 2**k + left


def ref_take(key: bytes, size: int, positions: list) -> list:
    if size <= 4096:
        words = ref_words(key, size, size, 8)
        order = sorted(range(size), key=lambda index: (words[index], index))
        return [order[position] for position in positions]
    k = math.ceil(len(format(size - 1, "b")) / 2)
    b = (size + 2**k - 1) // 2**k
    words = ref_words(key, size, 20, 4)
    found = []
    for position in positions:
        value = ref_walk(position, k, b, words)
        while value >= size:
            value = ref_walk(value, k, b, words)
        found.append(value)
    return found


# --- vectors --------------------------------------------------------------------------------------


def test_there_are_enough_vectors():
    """Frozen vectors stand for several keys and for every kind of size, the largest included."""
    assert len({vector["key"] for vector in VECTORS["orders"]}) >= 3
    assert {1, 2, 10, 1000, 4096, 4097, 10**6, 10**12, LARGEST} <= {
        int(vector["size"]) for vector in VECTORS["orders"]
    }


@pytest.mark.parametrize(
    "vector", VECTORS["orders"], ids=lambda vector: f"{vector['key'][:4]}-{vector['size']}"
)
def test_vectors(vector):
    """The permutation gives the frozen indices, and so does its independent writing."""
    key, size = bytes.fromhex(vector["key"]), int(vector["size"])
    positions, indices = [int(p) for p in vector["positions"]], [int(i) for i in vector["indices"]]
    order = IndexedPermutation(key, size)
    assert (
        order.take(np.array(positions, np.int64)).tolist()
        == indices
        == ref_take(key, size, positions)
    )
    assert order.position(np.array(indices, np.int64)).tolist() == positions
    if "sha256" in vector:
        assert (
            hashlib.sha256(order.slice(0, size).astype("<i8").tobytes()).hexdigest()
            == vector["sha256"]
        )


@given(keys, large_sizes, st.data())
def test_the_network_is_its_independent_writing(key, size, data):
    """For any key, large size and positions the vectorised network equals the one on Python's
    integers."""
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    order = IndexedPermutation(key, size)
    indices = order.take(np.array(positions, np.int64))
    assert indices.tolist() == ref_take(key, size, positions)
    assert order.position(indices).tolist() == positions


@given(keys, st.integers(0, 4096))
def test_the_table_is_its_independent_writing(key, size):
    """For any key and small size the table equals the sorted words."""
    assert IndexedPermutation(key, size).slice(0, size).tolist() == ref_take(
        key, size, list(range(size))
    )


def test_equal_words_keep_their_order(monkeypatch):
    """In the table, the lower index comes first among equal words."""
    words = np.array([5, 3, 5, 3, 5], "<u8").tobytes()
    monkeypatch.setattr(permutation, "_digest", lambda *args: words)
    assert IndexedPermutation(KEY, 5).slice(0, 5).tolist() == [1, 3, 0, 2, 4]


def test_a_fresh_process_agrees():
    """Another process, with another hash seed, computes the same order."""
    script = (
        "from seedregistry.data.permutation import IndexedPermutation as P;"
        "print(P(bytes(range(32)), 10**12).slice(7, 12).tolist())"
    )
    environment = {
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": str(Path(permutation.__file__).parents[2]),
        "PATH": "",
    }
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == ref_take(KEY, 10**12, list(range(7, 12)))


# --- bijection ------------------------------------------------------------------------------------


def is_bijection(order: IndexedPermutation) -> bool:
    whole = order.slice(0, order.size)
    hits = np.zeros(order.size, np.int64)
    np.add.at(hits, whole, 1)
    return bool((hits == 1).all()) and np.array_equal(order.position(whole), np.arange(order.size))


def test_every_small_size_is_a_bijection():
    """For every size from 0 to 3000 each index comes once, and the inverse finds it."""
    assert all(is_bijection(IndexedPermutation(KEY, size)) for size in range(3001))


def test_the_network_is_a_bijection_at_every_size(monkeypatch):
    """The network is a bijection at sizes far below those that it is used for, where it walks
    the most."""
    monkeypatch.setattr(permutation, "_TABLE_SIZE", 1)
    assert all(is_bijection(IndexedPermutation(KEY, size)) for size in range(2, 1200))


def test_random_sizes_are_bijections():
    """Sizes up to a million, and those next to powers of two and to the table's bound, are
    bijections."""
    draw = random.Random(20)
    sizes = [
        4095,
        4096,
        4097,
        4098,
        WALKED - 1,
        WALKED,
        WALKED + 1,
        65535,
        65536,
        65537,
        2**19 + 1,
        10**6,
    ]
    sizes += [draw.randrange(4097, 10**6) for _ in range(12)]
    assert all(is_bijection(IndexedPermutation(key_number(size), size)) for size in sizes)


@pytest.mark.parametrize(
    "size", [LARGEST, LARGEST - 1, 2**61 + 1, 2**61, 2**61 - 1, 2**60 + 1, 10**18, 2**32, 2**32 + 1]
)
def test_the_ends_of_huge_sizes(size):
    """At huge sizes the first and last positions map into the range and back."""
    order = IndexedPermutation(KEY, size)
    for start in (0, size // 2, size - 500):
        indices = order.slice(start, start + 500)
        assert indices.min() >= 0
        assert indices.max() < size
        assert np.array_equal(order.position(indices), np.arange(start, start + 500))
    assert order.position([0, size - 1]).shape == (2,)


def test_a_broken_inverse_is_caught(monkeypatch):
    """The bijection test notices a round that is not undone."""
    monkeypatch.setattr(permutation, "_TABLE_SIZE", 1)
    order = IndexedPermutation(KEY, 5000)
    walk = permutation._Network._walk

    def broken(self, values, space, *, inverse):
        walk(self, values, space, inverse=False)

    monkeypatch.setattr(permutation._Network, "_walk", broken)
    assert not is_bijection(order)


# --- random access --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 4096, 4097, 3 * permutation._CHUNK + 5])
def test_slices_agree_with_the_whole(size):
    """A slice at any boundary, those of the chunks included, is that part of the whole, and so
    is what take returns."""
    order = IndexedPermutation(KEY, size)
    whole = order.take(np.arange(size))
    edges = {
        0,
        1,
        size // 3,
        size - 1,
        size,
        *(c + d for c in (0, permutation._CHUNK, 2 * permutation._CHUNK) for d in (-1, 0, 1)),
    }
    for start, stop in itertools.combinations_with_replacement(
        sorted(edge for edge in edges if 0 <= edge <= size), 2
    ):
        part = order.slice(start, stop)
        assert part.dtype == np.int64
        assert np.array_equal(part, whole[start:stop])
    shuffled = np.random.default_rng(3).permutation(size)
    assert np.array_equal(order.take(shuffled), whole[shuffled])


def test_the_chunk_changes_nothing(monkeypatch):
    """The size of a chunk is a matter of speed and never of the result."""
    expected = [IndexedPermutation(KEY, size).slice(0, size) for size in (100, 5000, 70_000)]
    monkeypatch.setattr(permutation, "_CHUNK", 37)
    found = [IndexedPermutation(KEY, size).slice(0, size) for size in (100, 5000, 70_000)]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize("size", [50, 5000])
def test_shapes_and_dtypes(size):
    """Results have the shape of the argument and int64 values, for any integer dtype and memory
    layout; arguments stay."""
    order = IndexedPermutation(KEY, size)
    whole = order.slice(0, size)
    for dtype in (np.int8, np.uint8, np.int32, np.uint64, np.int64, ">i4", ">u8"):
        given_positions = np.arange(24).astype(dtype).reshape(2, 3, 4)
        for positions in (
            given_positions,
            np.asfortranarray(given_positions),
            given_positions[::-1, :, ::2],
        ):
            before = positions.copy()
            found = order.take(positions)
            assert found.dtype == np.int64
            assert np.array_equal(found, whole[positions.astype(np.int64)])
            assert np.array_equal(positions, before)
    assert order.take(np.int64(3)).shape == ()
    assert int(order.take(3)) == whole[3]
    assert order.take([]).shape == (0,)
    assert order.take(np.empty((0, 3))).shape == (0, 3)
    assert order.take([2, 2]).tolist() == [whole[2]] * 2


def test_memory_does_not_grow_with_the_size():
    """A batch of 10**12 samples, from the middle, takes no more memory than one of 10**4."""

    def peak(size: int) -> int:
        tracemalloc.start()
        order = IndexedPermutation(KEY, size)
        order.slice(size // 2, size // 2 + 256)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10**4)
    assert peak(10**12) < 40_000
    assert peak(LARGEST) < 40_000


def test_values():
    """An instance has a size, a length and a repr without the key; copies and pickles are the
    same permutation."""
    order = IndexedPermutation(KEY, 10**12)
    assert order.size == len(order) == 10**12
    assert repr(order) == "IndexedPermutation(key=00010203..., size=1000000000000)"
    for twin in (pickle.loads(pickle.dumps(order)), copy.copy(order), copy.deepcopy(order)):
        assert np.array_equal(twin.slice(5, 50), order.slice(5, 50))
    assert len(pickle.dumps(IndexedPermutation(KEY, 4096))) < 200
    assert IndexedPermutation(KEY, np.int64(7)).size == 7
    assert IndexedPermutation(KEY, 0).slice(0, 0).tolist() == []
    assert IndexedPermutation(KEY, 1).slice(0, 1).tolist() == [0]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", b"\0" * 31, b"\0" * 33, "0" * 32, bytearray(32), None, 7])
def test_wrong_keys(key):
    """A key that is not 32 bytes is refused."""
    with pytest.raises(InvalidOptionError, match="must be 32 bytes"):
        IndexedPermutation(key, 10)


@pytest.mark.parametrize("size", [-1, LARGEST + 1, 10**30, 1.0, "10", None, True])
def test_wrong_sizes(size):
    """A size that is not an int from 0 to 2**62 is refused."""
    with pytest.raises(InvalidOptionError, match="size of a permutation must be"):
        IndexedPermutation(KEY, size)


@pytest.mark.parametrize("size", [0, 10, 5000, 10**12])
@pytest.mark.parametrize("method", ["take", "position"])
def test_values_out_of_range(size, method):
    """A position or index outside the range is refused with an IndexError that shows it, in
    every integer dtype."""
    look_up = getattr(IndexedPermutation(KEY, size), method)
    wrong = [
        np.array([0, size]),
        np.array([-1]),
        np.array([2**64 - 1], np.uint64),
        np.array([2**63], np.uint64),
        [-(2**63)],
    ]
    for values in wrong:
        with pytest.raises(OutOfRangeError, match=f"< {size}, the size") as caught:
            look_up(values)
        assert isinstance(caught.value, IndexError)
        assert caught.value.value in str(caught.value)


@pytest.mark.parametrize("values", [[1.0], ["1"], [True], [None], [1 + 0j]])
def test_values_that_are_no_integers(values):
    """Floats, bools and the rest are refused, whole or not."""
    for method in ("take", "position"):
        with pytest.raises(InvalidOptionError, match="must be an integer"):
            getattr(IndexedPermutation(KEY, 10), method)(values)


def test_wrong_slices():
    """A slice outside the range, backwards or of floats is refused; nothing is clipped."""
    order = IndexedPermutation(KEY, 10)
    for start, stop in ((-1, 3), (0, 11), (5, 4), (11, 11), (-3, -1)):
        with pytest.raises(OutOfRangeError, match="0 <= start <= stop <= 10"):
            order.slice(start, stop)
    for start, stop in ((0.0, 3), (0, "3"), (None, 3), (0, None)):
        with pytest.raises(InvalidOptionError, match="of a slice must be an int"):
            order.slice(start, stop)


# --- statistics -----------------------------------------------------------------------------------
# Everything is seeded, so a figure is the same in every run. Each is a chi-square statistic in
# standard deviations from its mean, which for a uniform permutation is about a standard normal
# number.

LIMIT = 4.0


def deviation(counts: np.ndarray, expected: np.ndarray, freedom: int) -> float:
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def frequencies(orders: list) -> dict:
    """Compare where indices fall, and how neighbours differ, with what is expected of uniform
    permutations."""
    n, count = len(orders[0]), len(orders)
    stacked = np.stack(orders)
    positions = np.linspace(0, n - 1, 50).astype(int)
    found = {}
    for name, bins in (
        ("position, high part", stacked[:, positions] * 20 // n),
        ("position, low part", stacked[:, positions] % 20),
    ):
        table = np.zeros((len(positions), 20))
        np.add.at(table, (np.arange(len(positions)), bins), 1)
        found[name] = deviation(table, np.full_like(table, count / 20), len(positions) * 19)
    for step in (1, 2, 128):  # 128 is a, the number of left halves, at 5,000
        differences = (stacked[:, step:] - stacked[:, :-step]) % n
        table = np.bincount(differences.ravel(), minlength=n)[1:].astype(float)
        found[f"neighbours, {step} apart"] = deviation(
            table, np.full(n - 1, table.sum() / (n - 1)), n - 2
        )
        low, share = np.bincount(np.arange(1, n) % 128, table), np.bincount(np.arange(1, n) % 128)
        found[f"neighbours, {step} apart, low part"] = deviation(
            low, share * table.sum() / (n - 1), 127
        )
    return found


SIZE, EPOCHS = 5000, 500


def epoch_orders(scheme: str, size: int = SIZE, epochs: int = EPOCHS) -> list:
    stream = SeedRegistry(42, scheme=scheme).stream("dataloader", "x")
    return [
        IndexedPermutation(stream.at("order", epoch).key, size).slice(0, size)
        for epoch in range(epochs)
    ]


def worst(found: dict) -> float:
    return max(abs(value) for value in found.values())


def test_epochs_of_the_network_look_uniform():
    """Over the epochs of a loader, indices and neighbours fall as those of uniform permutations
    do."""
    found = frequencies(epoch_orders("sha256-256"))
    assert worst(found) < LIMIT, found


def test_both_schemes_have_the_same_orders():
    """The key of a position does not depend on the scheme, and so neither do the orders."""
    a, b = epoch_orders("sha256-31", epochs=3), epoch_orders("sha256-256", epochs=3)
    assert np.array_equal(a, b)


def test_epochs_of_the_table_look_uniform():
    """The same holds for the table."""
    found = frequencies(epoch_orders("sha256-256", size=1000, epochs=1500))
    assert worst(found) < LIMIT, found


def test_neighbouring_keys_look_uniform():
    """The same holds over keys that are small integers, of which two differ in a few bits."""
    found = frequencies(
        [IndexedPermutation(n.to_bytes(32, "big"), SIZE).slice(0, SIZE) for n in range(EPOCHS)]
    )
    assert worst(found) < LIMIT, found


def test_randperm_measures_alike():
    """The figures of torch.randperm, over generators with seeds of their own, stay below the
    same limit."""
    found = frequencies(
        [
            torch.randperm(SIZE, generator=torch.Generator().manual_seed(s)).numpy()
            for s in range(EPOCHS)
        ]
    )
    assert worst(found) < LIMIT, found


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_too_few_rounds_are_caught(monkeypatch, rounds):
    """The statistics notice a network of up to four rounds."""
    monkeypatch.setattr(permutation, "_ROUNDS", rounds)
    found = frequencies(epoch_orders("sha256-256"))
    assert worst(found) > 4 * LIMIT, found


def test_an_ignored_key_is_caught(monkeypatch):
    """The statistics notice a permutation that is the same in every epoch."""
    digest = permutation._digest
    monkeypatch.setattr(
        permutation, "_digest", lambda key, size, count: digest(b"\0" * 32, size, count)
    )
    assert worst(frequencies(epoch_orders("sha256-256"))) > 100 * LIMIT


def orders_of_few(size: int, count: int = 24_000) -> float:
    number = {order: i for i, order in enumerate(itertools.permutations(range(size)))}
    counts = np.zeros(len(number))
    for key in range(count):
        counts[
            number[tuple(IndexedPermutation(key_number(key), size).slice(0, size).tolist())]
        ] += 1
    return deviation(counts, np.full(len(number), count / len(number)), len(number) - 1)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_few_are_equally_frequent(size):
    """Over many keys each of the size! permutations comes equally often, odd ones too."""
    assert abs(orders_of_few(size)) < LIMIT


def test_a_network_over_few_is_caught(monkeypatch):
    """The frequencies of all permutations show a network of four rounds over five elements: why
    small sizes are a table."""
    monkeypatch.setattr(permutation, "_TABLE_SIZE", 1)
    monkeypatch.setattr(permutation, "_ROUNDS", 4)
    assert orders_of_few(5, 2_400) > 4 * LIMIT


def agreement(a: np.ndarray, b: np.ndarray) -> tuple:
    """Return how many positions agree, and the correlation of the indices in standard
    deviations."""
    return int((a == b).sum()), float(np.corrcoef(a, b)[0, 1] * math.sqrt(len(a) - 1))


def test_avalanche():
    """Any flipped bit of the key gives an unrelated permutation: about one position agrees, and
    nothing correlates."""
    for size in (1000, 5000):
        base = IndexedPermutation(KEY, size).slice(0, size)
        agreeing, correlations = [], []
        for bit in range(256):
            flipped = (int.from_bytes(KEY, "big") ^ (1 << bit)).to_bytes(32, "big")
            same, correlation = agreement(base, IndexedPermutation(flipped, size).slice(0, size))
            agreeing.append(same)
            correlations.append(correlation)
        assert abs(np.mean(agreeing) - 1) < LIMIT / math.sqrt(256)  # Poisson of mean 1
        assert max(agreeing) < 8
        assert max(np.abs(correlations)) < LIMIT + 0.5
        assert abs(np.sum(np.square(correlations)) - 256) < LIMIT * math.sqrt(512)


@pytest.mark.parametrize("size", [999, 4095, 4096, 4097, 4098, 65536, 10**5])
def test_neighbouring_sizes_are_unrelated(size):
    """One element more gives an unrelated permutation, also across the table's bound."""
    a, b = (IndexedPermutation(KEY, n).slice(0, size) for n in (size, size + 1))
    same, correlation = agreement(a, b)
    assert same < 8
    assert abs(correlation) < LIMIT


def parity(order: np.ndarray) -> int:
    seen, even = np.zeros(len(order), bool), 0
    where = order.tolist()
    for start in range(len(where)):
        at, length = start, 0
        while not seen[at]:
            seen[at] = True
            at = where[at]
            length += 1
        even ^= (length + 1) % 2 if length else 0
    return even


def test_both_parities_occur():
    """The network gives odd and even permutations about equally often, also where it never
    walks."""
    odd = [parity(IndexedPermutation(key_number(n), WALKED).slice(0, WALKED)) for n in range(200)]
    assert abs(sum(odd) - 100) < LIMIT * math.sqrt(50)
