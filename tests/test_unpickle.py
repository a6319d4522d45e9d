"""The restricted unpickler: plain numpy data passes, everything else is refused before it can do anything."""

import contextlib
import os
import pickle
import subprocess
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast.data.converters.unpickle import load_npz, load_pickle
from hpe_fast.data.schema import DataError

PLAIN = {
    ("S1", "54138969"): {"R": np.eye(3), "T": np.arange(3.0).reshape(3, 1), "id": "54138969", "w": 1000},
    "fortran": np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f8"),
    "text": np.array(["a", "bcd"]),
    "bytes": b"\x00\xff",
    "scalar": np.float32(1.5),
    "objects": np.array([{"a": np.zeros((2, 32, 3), np.float32)}, None], dtype=object),
    "empty": np.zeros((0, 17)),
    "flag": np.bool_(True),
    "list": [1, 2.5, None, (True, "x")],
}


@pytest.mark.parametrize("operation", [b"r\xff\xff\xff\xff", b"p4000000000\n"])
def test_a_number_that_would_fill_the_memory(tmp_path, operation):
    (tmp_path / "a.pkl").write_bytes(b"]" + operation + b".")
    with pytest.raises(DataError, match="numbers an object 4"):
        load_pickle(tmp_path / "a.pkl")


def same(a, b):
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    if isinstance(b, np.ndarray) and b.dtype.hasobject:
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, (np.ndarray, np.generic)):
        return a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=") and a.shape == b.shape and np.array_equal(a, b)
    return a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert same(load_pickle(tmp_path / "a.pkl"), PLAIN)


def test_object_array_in_npz(tmp_path):
    poses = {"S1": {"Walk": np.ones((4, 32, 3), np.float32)}}
    np.savez(tmp_path / "a.npz", positions_3d=poses, plain=np.arange(3))
    found = load_npz(tmp_path / "a.npz", ("positions_3d", "plain"))
    assert same(found["positions_3d"].item(), poses)
    assert found["plain"].tolist() == [0, 1, 2]


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def attacks(mark):
    yield "os.system", Evil(os.system, (f"touch {mark}",))
    yield "subprocess", Evil(subprocess.Popen, (["touch", str(mark)],))
    yield "eval", Evil(eval, (f"open({str(mark)!r}, 'w')",))
    yield "getattr", Evil(getattr, ("", "join"))
    yield "numpy file", Evil(np.ndarray.tofile, (np.arange(3), str(mark)))
    yield "numpy load", Evil(np.load, (str(mark),))
    yield "deep in an object array", np.array([{"a": [Evil(os.system, (f"touch {mark}",))]}], dtype=object)
    yield "structured dtype", np.zeros(2, dtype=[("a", "f4")])
    yield "bytes of a size", Evil(bytes, (10,))
    yield "another class", Fraction(1, 2)


@pytest.mark.parametrize("number", range(10))
def test_attacks_are_refused_and_do_nothing(tmp_path, number):
    mark = tmp_path / "executed"
    name, attack = list(attacks(mark))[number]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(attack))
    with pytest.raises(DataError, match=r"a\.pkl: refused: "):
        load_pickle(tmp_path / "a.pkl")
    content = np.empty((), dtype=object)
    content[()] = attack
    np.savez(tmp_path / "a.npz", x=content)
    with pytest.raises(DataError, match=r"a\.npz: x: refused: "):
        load_npz(tmp_path / "a.npz", ("x",))
    assert not mark.exists(), name


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\ndtype\n}(Vreal\nI1\nub.",  # state of a function
        b"cnumpy\ndtype\n(N}V_call\nI1\nstb.",  # attributes of a function
        b"cnumpy\nndarray\n(I3\ntR.",  # call of what is only a name
        b"cnumpy.core.multiarray\nscalar\n(Vf8\nVabc\ntR.",  # not a dtype
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRVabcdefgh\ntR.",  # an address as an object
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I9\ntcnumpy\ndtype\n(Vf8\ntRI00\nVabc\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I1\ntcnumpy\ndtype\n(VO8\ntRI00\nVabcdefgh\ntb.",
    ],
)
def test_handmade_programs_are_refused(tmp_path, program):
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(DataError, match=r"a\.pkl: (refused|damaged)"):
        load_pickle(tmp_path / "a.pkl")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 2, 4, 5]))
def test_damaged_pickles_are_read_or_refused(tmp_path_factory, seed, protocol):
    data, rng = bytearray(pickle.dumps(PLAIN, protocol=protocol)), np.random.default_rng(seed)
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.integers(256)
    file = tmp_path_factory.getbasetemp() / "damaged.pkl"
    file.write_bytes(data[: rng.integers(1, len(data) + 1)])
    with contextlib.suppress(DataError):  # and no other error
        load_pickle(file)


def test_damaged_npz(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, x=np.arange(3))
    with pytest.raises(DataError, match=r"\['y.npy'\] are missing"):
        load_npz(file, ("y",))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match="not a whole npz file"):
        load_npz(file, ("x",))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(DataError, match="not an npy array"):
        load_npz(file, ("x",))
