"""The pose store: what goes in comes out, and whatever is wrong with a file is said."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from conftest import labels, picture

from hpe_fast.data.seal import seal
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter
from hpe_fast.skeleton import JOINTS


@pytest.fixture
def copy(store_path: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    target = tmp_path / "copy.h5"
    target.write_bytes(store_path.read_bytes())
    return target


def test_round_trip(store_path: Path):
    store = PoseStore(store_path)
    assert len(store) == 20
    assert store.image_size == (64, 64)
    assert store.has_images
    for i in (0, 7, 19):
        want = labels(i, (64, 64))
        for name in ("pose2d", "pose3d", "intrinsics", "visible"):
            np.testing.assert_array_equal(getattr(store, name)[i], want[name].astype(getattr(store, name).dtype))
        assert store.read_jpeg(i) == picture(i, (64, 64))
        assert store.crc32[i] == zlib.crc32(picture(i, (64, 64)))
    assert store.subject[:4] == ["S0", "S1", "S2", "S0"]
    assert store.action[:3] == ["Walk 0", "Walk 1", "Walk 0"]
    assert store.camera[-1] == "cam0"
    assert store.name[3] == "Bär_3.jpg"
    assert store.frame.tolist() == list(range(0, 100, 5))


def test_image_is_rgb_as_opencv_decodes_it(store_path: Path):
    want = cv2.imdecode(np.frombuffer(picture(2, (64, 64)), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(PoseStore(store_path).image(2), want)


def test_blob_is_contiguous_so_that_other_tools_can_read_it_at_an_offset(store_path: Path):
    with h5py.File(store_path) as file:
        assert file["jpeg"].chunks is None
        assert file["jpeg"].compression is None
        start = file["jpeg"].id.get_offset() + int(file["offset"][4])
        assert file.attrs["joints"].tolist() == list(JOINTS)
    data = picture(4, (64, 64))
    assert store_path.read_bytes()[start : start + len(data)] == data


def test_poses_only(make_store):
    store = PoseStore(make_store(count=3, jpegs=False))
    assert not store.has_images
    assert len(store) == 3
    with pytest.raises(DataError, match=r"row 1 \(Bär_1\.jpg\): not a JPEG"):
        store.read_jpeg(1)


def test_unknown_labels_are_nan(tmp_path: Path):
    with PoseStoreWriter(tmp_path / "a.h5", (10, 10), source="here") as writer:
        writer.append(None, np.zeros((17, 2)), np.zeros(17))
    store = PoseStore(tmp_path / "a.h5")
    assert np.isnan(store.pose3d).all()
    assert np.isnan(store.intrinsics).all()
    assert store.subject == [""]
    assert store.attributes["source"] == "here"


def test_labels_cannot_be_written_to(store_path: Path):
    with pytest.raises(ValueError, match="read-only"):
        PoseStore(store_path).pose2d[0] = 0


def test_pickle_opens_the_file_again(store_path: Path):
    store = PoseStore(store_path)
    store.read_jpeg(0)
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data).read_jpeg(5) == store.read_jpeg(5)


def test_fork_reads_the_same_pictures(store_path: Path):
    store = PoseStore(store_path)
    store.read_jpeg(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put([store.read_jpeg(i) for i in range(20)]))
    child.start()
    mine = [store.read_jpeg(i) for i in range(20)]
    theirs = queue.get(timeout=30)
    child.join(timeout=30)
    assert theirs == mine


def test_close_and_read_again(store_path: Path):
    with PoseStore(store_path) as store:
        first = store.read_jpeg(0)
    store.close()
    assert store.read_jpeg(0) == first


@pytest.mark.parametrize("row", [-1, 20])
def test_row_out_of_range(store_path: Path, row: int):
    with pytest.raises(IndexError, match=f"row must be in .* got {row}"):
        PoseStore(store_path).read_jpeg(row)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        PoseStore(tmp_path / "nowhere.h5")


def test_not_hdf5(tmp_path: Path):
    (tmp_path / "a.h5").write_bytes(b"not HDF5" * 100)
    with pytest.raises(DataError, match=r"a\.h5: no pose store \(it begins with b'not HDF5'"):
        PoseStore(tmp_path / "a.h5")


def test_truncated(copy: Path):
    os.truncate(copy, copy.stat().st_size // 2)
    with pytest.raises(DataError, match=r"copy\.h5: truncated: \d+ of \d+ bytes"):
        PoseStore(copy)


def test_truncated_while_in_use(copy: Path):
    store = PoseStore(copy)
    os.truncate(copy, store._base + 10)
    with pytest.raises(DataError, match=r"copy\.h5: row 0 \(Bär_0\.jpg\): 10 of \d+ bytes left"):
        store.read_jpeg(0)


def test_flipped_bit_in_a_picture(copy: Path):
    store = PoseStore(copy)
    with open(copy, "r+b") as file:
        file.seek(store._base + int(store.offset[7]) + 400)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    store.read_jpeg(6)
    with pytest.raises(DataError, match=r"copy\.h5: row 7 \(Bär_7\.jpg\): checksum"):
        store.read_jpeg(7)


def _delete(name):
    return lambda file: file.__delitem__(name)


def _attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def _replace(name, change):
    def edit(file):
        values = change(file[name][()])
        del file[name]
        file[name] = values

    return edit


def _put(name, index, value):
    return lambda file: file[name].__setitem__(index, value)


def _chunk(file):
    values = file["jpeg"][()]
    del file["jpeg"]
    file.create_dataset("jpeg", data=values, chunks=(100,))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_attribute("format", "something"), "no pose store"),
        (_attribute("version", 99), "version 99, this code reads version 1"),
        (_attribute("joints", ["Nose"] * 17), "joints are"),
        (_attribute("image_size", [0, 64]), "image_size must be"),
        (_attribute("image_size", 64), "image_size must be"),
        (_delete("crc32"), "dataset /crc32 is missing"),
        (_delete("subject_names"), "dataset /subject_names is missing"),
        (_delete("pose2d"), "dataset /pose2d is missing"),
        (_replace("pose3d", lambda v: v[:-1]), r"/pose3d is <f4 \[19, 17, 3\], want <f4 \[20, 17, 3\]"),
        (_replace("pose2d", lambda v: v[:, :16]), r"/pose2d is <f4 \[20, 16, 2\], want <f4 \[any, 17, 2\]"),
        (_replace("pose2d", lambda v: v.astype("f8")), "/pose2d is <f8"),
        (_replace("name", lambda v: np.arange(20)), "/name is"),
        (_put("pose2d", (4, 3, 1), np.nan), r"row 4 \(Bär_4\.jpg\): dataset /pose2d is not finite"),
        (_put("pose3d", (5, 0, 0), np.inf), r"row 5 \(.*\): dataset /pose3d is infinite"),
        (_put("visible", (6, 0), 2), r"row 6 \(.*\): dataset /visible is neither 0 nor 1"),
        (_put("intrinsics", (2, 0), -1.0), r"row 2 \(.*\): dataset /intrinsics has a focal length"),
        (_put("action", 3, 7), r"row 3 \(.*\): dataset /action is no row of /action_names"),
        (_put("offset", 9, 0), r"row 8 \(.*\): dataset /offset does not increase"),
        (_put("offset", 20, 5), "dataset /offset spans 0 to 5"),
        (_chunk, "dataset /jpeg must be contiguous"),
    ],
)
def test_wrong_file(copy: Path, edit, message: str):
    with h5py.File(copy, "r+") as file:
        edit(file)
    seal(copy)
    with pytest.raises(DataError, match=message) as error:
        PoseStore(copy)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose2d": np.full((17, 2), np.nan)}, r"row 1 \(b\.jpg\): pose2d must be finite"),
        ({"pose2d": np.zeros((16, 2))}, r"row 1 \(b\.jpg\): pose2d must have shape \[17, 2\], got \[16, 2\]"),
        ({"visible": np.full(17, 0.5)}, r"row 1 \(b\.jpg\): visible must be 0 or 1"),
        ({"pose3d": np.full((17, 3), np.inf)}, r"row 1 \(b\.jpg\): pose3d must be finite"),
        ({"intrinsics": np.array([0.0, 1, 1, 1])}, r"row 1 \(b\.jpg\): intrinsics must have positive focal lengths"),
        ({"jpeg": b"\x89PNG"}, r"row 1 \(b\.jpg\): jpeg is not a JPEG"),
        ({"jpeg": picture(0, (32, 48))}, r"row 1 \(b\.jpg\): jpeg is 48x32 pixels, want 64x64"),
        ({"jpeg": None}, r"row 1 \(b\.jpg\): jpeg must be given for every row or for none"),
    ],
)
def test_writer_refuses_a_row_and_leaves_nothing(tmp_path: Path, changes: dict, message: str):
    row = {"jpeg": picture(0, (64, 64)), **labels(0, (64, 64)), "name": "b.jpg"}

    def write():
        with PoseStoreWriter(tmp_path / "a.h5", (64, 64)) as writer:
            writer.append(**row)
            writer.append(**{**row, **changes})

    with pytest.raises(ValueError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_writer_needs_a_row(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one row"), PoseStoreWriter(tmp_path / "a.h5", (64, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writer_needs_a_size(tmp_path: Path):
    with pytest.raises(ValueError, match="image_size must be positive"):
        PoseStoreWriter(tmp_path / "a.h5", (0, 64))


def test_an_error_keeps_the_old_file(copy: Path):
    before = copy.read_bytes()
    with pytest.raises(KeyError), PoseStoreWriter(copy, (64, 64)) as writer:
        writer.append(None, np.zeros((17, 2)), np.ones(17))
        raise KeyError
    assert copy.read_bytes() == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy.h5"]


def test_disk_full_while_spooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write():
        with PoseStoreWriter(tmp_path / "a.h5", (64, 64)) as writer:
            monkeypatch.setattr(writer, "_blob", type("Full", (), {"write": staticmethod(full)}))
            writer.append(picture(0, (64, 64)), **labels(0, (64, 64)))

    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


_WRITE = """
import resource, sys
import numpy as np
from hpe_fast.data.store import PoseStoreWriter
path, jpeg, rows, limit = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3]), sys.argv[4:]
try:
    with PoseStoreWriter(path, (64, 64)) as writer:
        for _ in range(rows):
            writer.append(jpeg, np.zeros((17, 2)), np.ones(17))
        if limit:  # the spooled pictures fit, the labels no longer do
            resource.setrlimit(resource.RLIMIT_FSIZE, (writer._end, resource.RLIM_INFINITY))
except OSError as error:
    print(error)
"""


def write_elsewhere(folder: Path, rows: int, *limit: str) -> str:
    """What a process says that writes a store to ``folder/a.h5``; it must end well, and not only say something."""
    jpeg = folder.parent / "a.jpg"
    jpeg.write_bytes(picture(0, (64, 64)))
    command = [sys.executable, "-c", _WRITE, str(folder / "a.h5"), str(jpeg), str(rows), *limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_no_room_for_the_final_file(tmp_path: Path):
    (tmp_path / "out").mkdir()
    said = write_elsewhere(tmp_path / "out", 200, "limited")
    assert re.search(r"File too large, \d+ bytes are wanted: .*a\.h5", said)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("part", [0.2, 0.6, 0.776, 1.2])
def test_full_disk(small_disk: Path, part: float):
    """Room for all, for what is spooled only (HDF5 let alone there crashes the process at 0.776), not even for that."""
    (small_disk / "a.h5").write_text("old")
    rows = int(part * (3 << 20) / len(picture(0, (64, 64))))
    said = write_elsewhere(small_disk, rows)
    assert [file.name for file in small_disk.iterdir()] == ["a.h5"]
    if part == 0.2:
        assert said == ""
        assert len(PoseStore(small_disk / "a.h5")) == rows
    else:
        assert "No space left on device" in said
        assert (small_disk / "a.h5").read_text() == "old"


def test_large_blob_is_copied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hpe_fast.data.store_writer._COPY_BYTES", 1000)
    with PoseStoreWriter(tmp_path / "a.h5", (64, 64)) as writer:
        for i in range(4):
            writer.append(picture(i, (64, 64)), **labels(i, (64, 64)))
    store = PoseStore(tmp_path / "a.h5")
    assert [store.read_jpeg(i) for i in range(4)] == [picture(i, (64, 64)) for i in range(4)]
