"""Damaged stores and pictures: read correctly or refused in words, in a process that outlives them all.

Mutants are read in another process, which says what it is about to read before it reads it, so that one that crashes or
hangs it is known.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dataset_trees
import h5py
import numpy as np
import pytest
import torch
from conftest import labels, picture

from hpe_fast.data.converters.conversion import LAYOUTS
from hpe_fast.data.converters.pictures import BadPicture, crop_picture
from hpe_fast.data.schema import LABELS, TABLES
from hpe_fast.data.seal import SEAL_BYTES, seal
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter

ROWS, SIZE = 6, (64, 64)
#: How many mutants of each kind, and how long one process may take for them.
FEW = pytest.param(100, 30, id="few")
MANY = pytest.param(1000, 120, id="1000", marks=pytest.mark.slow)


# ---- mutants


def flip_bits(data: bytearray, place: Callable[[], int], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[place()] ^= 1 << rng.randrange(8)


def cut(data: bytearray, place: Callable[[], int], rng: random.Random) -> None:
    del data[place() :]


def zero(data: bytearray, place: Callable[[], int], rng: random.Random) -> None:
    start = place()
    end = min(len(data), start + rng.choice([1, 4, 16, 512, 4096]))
    data[start:end] = bytes(end - start)


def mutant(data: bytes, seed: int, regions: list[tuple[int, int]]) -> bytes:
    """A damaged copy; every region is hit equally often, however short it is."""
    rng, changed = random.Random(seed), bytearray(data)
    region = rng.choice(regions)
    rng.choice([flip_bits, cut, zero])(changed, lambda: rng.randrange(*region), rng)
    return bytes(changed)


# ---- the process that reads them


def everything(store: PoseStore) -> dict[str, object]:
    """All that can be read from a store, as bytes and lists."""
    content: dict[str, object] = {name: getattr(store, name).tobytes() for name in LABELS if name not in TABLES}
    content |= {name: getattr(store, name) for name in (*TABLES, "name", "image_size")}
    content |= {key: np.asarray(value).tolist() for key, value in store.attributes.items()}
    content["jpegs"] = [store.read_jpeg(row) for row in range(len(store))]
    content["images"] = [store.image(row).tobytes() for row in range(len(store))]
    return content


def judge(read: Callable[[], object], want: object, name: str) -> str:
    """ "same", "refused", or what is wrong with what ``read`` does; a refusal has to name the file."""
    try:
        return "same" if read() == want else "other content without an error"
    except DataError as error:
        return "refused" if name in str(error) else f"the message does not name the file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read_stores(folder: Path, count: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Mutants of whole stores."""
    original = (folder / "good.h5").read_bytes()
    with PoseStore(folder / "good.h5") as store:
        want, start, end = everything(store), store._base, store._base + int(store.offset[-1])
    regions = [(0, 40), (SEAL_BYTES, start), (start, end), (0, len(original))]

    def read() -> dict[str, object]:
        with PoseStore(folder / "mutant.h5") as store:
            return everything(store)

    for seed in range(count):
        (folder / "mutant.h5").write_bytes(mutant(original, seed, regions))
        yield seed, lambda: judge(read, want, "mutant.h5")


def read_damaged(folder: Path, count: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Pictures that were damaged after they were written."""
    with PoseStore(folder / "damaged.h5") as store:
        for row in range(count):
            yield row, lambda row=row: judge(lambda: store.read_jpeg(row), picture(row % ROWS, SIZE), f"(m{row})")


def read_careless(folder: Path, count: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Pictures that were damaged before they were written, so that their checksum fits."""
    with PoseStore(folder / "careless.h5") as store:
        for row in range(count):
            yield row, lambda row=row: judge(lambda: store.image(row).shape, (*SIZE, 3), f"(m{row})")


def read_sources(folder: Path, count: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """The same pictures as files that a converter is given."""

    def crop(row: int) -> str:
        file = folder / f"m{row}.jpg"
        file.write_bytes(damaged_picture(row))
        try:
            return "same" if crop_picture(file, np.array([0, 0, 32]), 32, 90).frame_size == SIZE else "other size"
        except BadPicture as error:
            return "refused" if file.name in str(error) else f"the message does not name the file: {error}"

    for row in range(count):
        yield row, lambda row=row: crop(row)


def load(folder: Path, count: int, device: str = "cpu") -> Iterator[tuple[int, Callable[[], str]]]:
    """The loader on both kinds of damaged pictures, first told to skip what is bad, then not."""
    from hpe_fast.data.loader import ImageLoader

    for number, name in enumerate(("damaged.h5", "careless.h5")):
        store = PoseStore(folder / name)
        yield 2 * number, lambda store=store: skip(ImageLoader(store, 32, device=device, skip_bad=True), store)
        yield 2 * number + 1, lambda store=store: judge(lambda: use(ImageLoader(store, 32, device=device)), None, "(m")


def load_on_gpu(folder: Path, count: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """The same on a GPU."""
    return load(folder, count, "cuda")


def use(loader) -> list[int]:
    return [int(batch.images.sum()) for batch in loader.epoch()]


def skip(loader, store: PoseStore) -> str:
    rows = [row for batch in loader.epoch() for row in batch.rows.tolist()]
    named = all(store.where(row) in problem for row, problem in loader.skipped.items())
    complete = sorted([*rows, *loader.skipped]) == list(range(len(store)))
    return "same" if rows and loader.skipped and named and complete else f"{named=} {complete=} {rows=}"


_PROCESS = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import test_mutations
test_mutations.main(*sys.argv[1:])
"""


def main(kind: str, folder: str, count: str) -> None:
    for number, verdict in globals()[kind](Path(folder), int(count)):
        print(number, end=" ", flush=True)  # a crash leaves the number alone on its line
        print(verdict(), flush=True)


# ---- the tests


def damaged_picture(row: int) -> bytes:
    good = picture(row % ROWS, SIZE)
    scan = good.index(b"\xff\xda")
    return mutant(good, row, [(0, 30), (0, scan), (scan, len(good))])


def write_damaged(folder: Path, count: int) -> None:
    """``careless.h5`` with damaged pictures and their checksums, ``damaged.h5`` with the checksums of good ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoseStoreWriter, "_checked_jpeg", lambda writer, jpeg, where: jpeg)
        for name in ("careless.h5", "damaged.h5"):
            with PoseStoreWriter(folder / name, SIZE) as writer:
                for row in range(count):
                    writer.append(damaged_picture(row) or b"\0", **labels(row, SIZE), name=f"m{row}")
    with h5py.File(folder / "damaged.h5", "r+") as file, PoseStore(folder / "good.h5") as good:
        file["crc32"][:] = np.resize(good.crc32, count)
    seal(folder / "damaged.h5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``good.h5`` of a few rows."""
    folder = tmp_path_factory.mktemp("mutants")
    with PoseStoreWriter(folder / "good.h5", SIZE, source="somewhere") as writer:
        for row in range(ROWS):
            who = {"subject": f"S{row % 2}", "action": "Walk", "camera": "cam", "name": f"Bär {row}", "frame": 5 * row}
            writer.append(picture(row, SIZE), **labels(row, SIZE), **who)
    return folder


def verdicts(kind: str, folder: Path, count: int, seconds: float) -> Counter[str]:
    """What became of each mutant; fails where one crashed or hung the process."""
    command = [sys.executable, "-X", "faulthandler", "-c", _PROCESS, kind, str(folder), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{kind}: no end after {(error.stdout or b'').splitlines()[-1:]}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{kind}: {done.returncode} at {lines[-1:]}\n{done.stderr[-2000:]}"
    return Counter(line.split(" ", 1)[1] for line in lines)


@pytest.mark.parametrize(("count", "seconds"), [FEW, MANY])
def test_damaged_stores(folder: Path, count: int, seconds: float):
    found = verdicts("read_stores", folder, count, seconds)
    assert set(found) == {"same", "refused"}  # the same: zeros over zeros, bits between the seal and HDF5
    assert found.total() == count
    assert found["refused"] > 0.9 * count


@pytest.mark.parametrize(("count", "seconds"), [FEW, MANY])
def test_damaged_pictures(folder: Path, count: int, seconds: float):
    write_damaged(folder, count)
    found = verdicts("read_damaged", folder, count, seconds)
    assert set(found) <= {"same", "refused"}
    assert found.total() == count
    assert found["refused"] > 0.9 * count


@pytest.mark.parametrize(("count", "seconds"), [FEW, MANY])
@pytest.mark.parametrize("kind", ["read_careless", "read_sources"])
def test_pictures_damaged_before_there_was_a_checksum(folder: Path, kind: str, count: int, seconds: float):
    """Nobody can tell whether these show what they did, JPEG having no checksum: refused, or of the right size."""
    write_damaged(folder, count)
    found = verdicts(kind, folder, count, seconds)
    assert set(found) == {"same", "refused"}
    assert found.total() == count
    assert found["refused"] > 0.3 * count


GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("count", "seconds"), [FEW, MANY])
@pytest.mark.parametrize("kind", ["load", pytest.param("load_on_gpu", marks=GPU)])
def test_loader_of_damaged_pictures(folder: Path, kind: str, count: int, seconds: float):
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI exists for Linux only")
    write_damaged(folder, count)
    assert verdicts(kind, folder, count, seconds) == {"same": 2, "refused": 2}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_labels_of_a_source(tmp_path: Path, layout: str):
    """HDF5 files are only cut off here: what HDF5 itself makes of damaged metadata may be anything."""
    getattr(dataset_trees, layout.replace("-", "_"))(tmp_path / "source")
    if layout == "videopose3d":
        dataset_trees.write_mmpose_cameras(tmp_path / "source" / "cameras.pkl")
    found: Counter[str] = Counter()
    for file in sorted(file for pattern in LAYOUTS[layout].annotations for file in (tmp_path / "source").glob(pattern)):
        good = file.read_bytes()
        for seed in range(20):
            rng, changed = random.Random(seed), bytearray(good)
            damage = cut if file.suffix == ".h5" else rng.choice([flip_bits, cut, zero])
            damage(changed, partial(rng.randrange, len(good)), rng)
            file.write_bytes(changed)
            found[judge(lambda: LAYOUTS[layout].read(tmp_path / "source") and None, None, ".")] += 1
        file.write_bytes(good)
    assert set(found) <= {"same", "refused"}
    assert found["refused"] >= 10


def test_the_judge_sees_silent_garbage(folder: Path):
    with PoseStore(folder / "good.h5") as store:
        want, start = everything(store), store._base
    data = bytearray((folder / "good.h5").read_bytes())
    data[data.index(store.pose2d.tobytes(), SEAL_BYTES, start)] ^= 1  # the last bit of a coordinate
    (folder / "sealed.h5").write_bytes(data)
    assert judge(lambda: everything(PoseStore(folder / "sealed.h5")), want, "sealed.h5") == "refused"
    seal(folder / "sealed.h5")
    assert "other content" in judge(lambda: everything(PoseStore(folder / "sealed.h5")), want, "sealed.h5")
