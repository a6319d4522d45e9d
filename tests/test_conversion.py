"""What happens around a conversion: interruptions, full disks, bad pictures, caches, and the command line."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import dataset_trees as trees
import h5py
import numpy as np
import pytest

from hpe_fast.convert import main
from hpe_fast.data.converters import ConvertOptions, convert, find_problems, open_dataset, shards
from hpe_fast.data.converters.pictures import crop_picture
from hpe_fast.data.schema import DataError
from hpe_fast.data.seal import seal
from hpe_fast.data.store import PoseStore, PoseStoreWriter

SMALL = ConvertOptions(size=48, workers=2)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A dataset of 2 x 8 rows, in pieces of three."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    trees.eth(tmp_path / "src", subjects=("S1", "S5"), rows=8)
    return tmp_path / "src"


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).glob("*.h5")}


def to_store(source, folder, options=SMALL):
    return convert("eth", source, folder, options, progress=False)


def stop_after(monkeypatch, calls, error):
    """Lets the n-th picture fail; counts the pictures."""
    real, count = shards.crop_picture, [0]

    def crop(*arguments):
        count[0] += 1
        if count[0] > calls:
            raise error
        return real(*arguments)

    monkeypatch.setattr(shards, "crop_picture", crop)
    return count


def test_same_bytes_whatever_the_workers(source, tmp_path):
    to_store(source, tmp_path / "a", ConvertOptions(size=48, workers=1))
    to_store(source, tmp_path / "b", ConvertOptions(size=48, workers=4))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 2


def test_an_interrupted_conversion_goes_on(source, tmp_path):
    to_store(source, tmp_path / "whole")
    one = ConvertOptions(size=48, workers=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 7, KeyboardInterrupt())
        to_store(source, tmp_path / "out", one)
    assert contents(tmp_path / "out") == {}
    assert len(list((tmp_path / "out" / "train.h5.partial").glob("*.npz"))) == 2
    with pytest.MonkeyPatch.context() as patch:
        count = stop_after(patch, 99, KeyboardInterrupt())
        to_store(source, tmp_path / "out", one)
        assert count[0] == 16 - 6  # six rows were done
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == ["train.h5", "valid.h5"]


def test_pieces_of_another_conversion_are_not_used(source, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 7, KeyboardInterrupt())
        to_store(source, tmp_path / "out", ConvertOptions(size=48, quality=10, workers=1))
    to_store(source, tmp_path / "out")
    to_store(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_piece_is_named(source, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 7, KeyboardInterrupt())
        to_store(source, tmp_path / "out", ConvertOptions(size=48, workers=1))
    piece = tmp_path / "out" / "train.h5.partial" / "00001.npz"
    piece.write_bytes(piece.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"00001\.npz: damaged .*remove it and run again"):
        to_store(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    piece.unlink()
    to_store(source, tmp_path / "out")
    to_store(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_empty_or_half_damaged_picture_of_a_source(source, tmp_path):
    file = spoil(source, "no picture")
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"row 4 \({file.name}\): .*not a picture"):
        to_store(source, tmp_path / "out")
    jpeg = cv2.imencode(".jpg", trees.scene(48, 48))[1].tobytes()
    place = jpeg.index(b"\xff\xda") + 200
    jpeg = jpeg[:place] + b"\xff\xa3" + jpeg[place + 2 :]
    file.write_bytes(jpeg)  # OpenCV decodes it all the same; DALI would not be given it
    train = PoseStore(to_store(source, tmp_path / "out")["train"])
    assert train.read_jpeg(4) != jpeg
    assert find_problems(train) == []


KILLED = """
    import sys, time
    from hpe_fast.data.converters import ConvertOptions, convert, shards
    from hpe_fast.data.store import PoseStoreWriter
    def slow(function):
        def wrapped(*arguments, **named):
            time.sleep(0.01)
            return function(*arguments, **named)
        return wrapped
    shards.SHARD_ROWS = 3
    shards.crop_picture, PoseStoreWriter.append = slow(shards.crop_picture), slow(PoseStoreWriter.append)
    print("ready", flush=True)
    convert("eth", sys.argv[1], sys.argv[2], ConvertOptions(size=48, workers=2), progress=False)
"""


@pytest.mark.slow
def test_kill_at_any_moment_then_the_same_bytes(source, tmp_path):
    to_store(source, tmp_path / "whole")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(tmp_path / "out")]
    moments, killed = random.Random(1), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        for name, content in contents(tmp_path / "out").items():  # whatever has its name is whole
            assert content == contents(tmp_path / "whole")[name]
        if killed >= 8:
            break
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out").glob("*.partial"))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["pieces", "rows"])
def test_full_disk(source, tmp_path, monkeypatch, place):
    def fail(*arguments, **named):
        raise FULL

    with pytest.MonkeyPatch.context() as patch:
        if place == "pieces":
            patch.setattr(np, "savez", fail)
        else:
            patch.setattr(PoseStoreWriter, "append", fail)
        with pytest.raises(OSError, match=r"writing .*train\.h5 stopped: .*No space left.*run again") as raised:
            to_store(source, tmp_path / "out")
    assert raised.value.errno == errno.ENOSPC
    assert contents(tmp_path / "out") == {}
    to_store(source, tmp_path / "out")
    to_store(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_really_full_disk(source, tmp_path):
    """Files may not grow beyond 64 KiB here. HDF5 would crash at exit had it been let to begin."""
    code = f"""
        import resource, sys
        from hpe_fast.data.converters import ConvertOptions, convert, shards
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        convert("eth", {str(source)!r}, {str(tmp_path / "out")!r}, ConvertOptions(size=48), progress=False)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train.h5 stopped: File too large" in done.stderr
    assert "run again" in done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train.h5.partial"]


def spoil(source, how):
    file = source / "images" / (source / "annot/train_images.txt").read_text().split()[4]
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "no picture":
        file.write_text("<html>404</html>")
    else:
        cv2.imwrite(str(file), np.zeros((64, 80, 3), np.uint8))
    return file


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "No such file"),
        ("truncated", "truncated JPEG"),
        ("no picture", "not a picture"),
        ("oblong", "square crop is wanted, the picture is 80 x 64"),
    ],
)
def test_bad_pictures_stop_or_are_left_out(source, tmp_path, how, message):
    file = spoil(source, how)
    with pytest.raises(DataError, match=rf"row 4 \({file.name}\): .*{message}"):
        to_store(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    files = to_store(source, tmp_path / "out", ConvertOptions(size=48, workers=2, skip_bad=True))
    train = PoseStore(files["train"])
    assert len(train) == 7
    assert file.name not in train.name
    assert find_problems(train) == []
    listed = (tmp_path / "out" / "train.left_out.txt").read_text()
    assert message in listed
    assert listed.count("\n") == 1


def test_only_bad_pictures_is_an_error_even_so(source, tmp_path):
    for file in (source / "images").glob("S1*"):
        file.unlink()
    with pytest.raises(DataError, match="none of the 8 pictures can be read"):
        to_store(source, tmp_path / "out", ConvertOptions(size=48, skip_bad=True))
    assert contents(tmp_path / "out") == {}


def test_exif_rotation_is_neither_applied_nor_passed_on(source, tmp_path):
    name = (source / "annot/train_images.txt").read_text().split()[0]
    file = source / "images" / name
    jpeg = file.read_bytes()
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
    file.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + jpeg[2:])
    assert (cv2.imread(str(file)) != cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)).any()
    train = PoseStore(to_store(source, tmp_path / "out", ConvertOptions(size=64))["train"])
    assert b"Exif" not in train.read_jpeg(0)
    assert np.abs(train.image(0).astype(int) - trees.scene(64, 64)[..., ::-1]).mean() < 12


@pytest.mark.parametrize("box", [(-7, -3, 80), (5, 20, 40), (30, -20, 90), (-50, 10, 60), (100, 0, 30)])
def test_what_lies_beyond_the_picture_is_black(tmp_path, box):
    trees.write_picture(tmp_path / "a.png", (64, 72))
    (left, top, side), scene = box, trees.scene(64, 72)
    crop = crop_picture(tmp_path / "a.png", np.array(box), side, 100)
    found = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    expected = np.zeros((side, side, 3), int)
    for y in range(side):
        for x in range(side):
            if 0 <= y + top < 64 and 0 <= x + left < 72:
                expected[y, x] = scene[y + top, x + left]
    assert crop.frame_size == (64, 72)
    assert np.abs(found - expected).mean() < 3


def test_limit(source, tmp_path):
    files = to_store(source, tmp_path / "out", ConvertOptions(size=48, limit=(3, 2)))
    assert [len(PoseStore(file)) for file in files.values()] == [3, 2]


# --data


def test_open_pair(source, tmp_path):
    files = to_store(source, tmp_path / "out")
    pair = (files["train"], files["valid"])
    assert open_dataset(tmp_path / "out") == open_dataset(files["train"]) == open_dataset(files["valid"]) == pair
    files["valid"].write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"valid\.h5: no pose store"):
        open_dataset(tmp_path / "out")


def test_open_layout_converts_once(source):
    train, valid = open_dataset(source, options=SMALL)
    assert train.parent == valid.parent == source.with_name("src.hpe_fast")
    assert (len(PoseStore(train)), len(PoseStore(valid))) == (8, 8)
    inode = train.stat().st_ino
    assert open_dataset(source, options=ConvertOptions(size=48, workers=1)) == (train, valid)
    assert train.stat().st_ino == inode
    names = source / "annot/train_images.txt"
    os.utime(names, ns=(1, 1))
    open_dataset(source, options=SMALL)
    assert train.stat().st_ino != inode  # the labels may be others


def test_open_layout_after_an_interruption(source, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 12, KeyboardInterrupt())  # in the validation split
        open_dataset(source, options=ConvertOptions(size=48, workers=1))
    assert not (source.with_name("src.hpe_fast") / "valid.h5").exists()
    assert len(PoseStore(open_dataset(source, options=SMALL)[1])) == 8


def test_processes_that_open_at_the_same_time_convert_once(source, monkeypatch):
    count = stop_after(monkeypatch, 99, None)
    with ThreadPoolExecutor(3) as pool:
        pairs = set(pool.map(lambda _: open_dataset(source, options=SMALL), range(3)))
    assert len(pairs) == 1
    assert count[0] == 16


def test_open_here(source, monkeypatch):
    monkeypatch.chdir(source)
    assert open_dataset(".", options=SMALL)[0] == source.with_name("src.hpe_fast") / "train.h5"


def test_open_where_nothing_can_be_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"src\.hpe_fast: cannot be written"):
        open_dataset(source)
    train, _ = open_dataset(source, cache=tmp_path / "run" / "data", options=SMALL)
    assert train == tmp_path / "run" / "data" / "train.h5"


def test_open_single_store_splits_it_by_subject(store_path, make_store):
    original = PoseStore(store_path)
    train, valid = (PoseStore(path) for path in open_dataset(store_path))
    assert (set(train.subject), set(valid.subject)) == ({"S0", "S1"}, {"S2"})
    rows = [i for i, subject in enumerate(original.subject) if subject == "S2"]
    assert valid.name == [original.name[i] for i in rows]
    assert [valid.read_jpeg(i) for i in range(len(valid))] == [original.read_jpeg(i) for i in rows]
    np.testing.assert_array_equal(valid.pose3d, original.pose3d[rows])
    lonely = make_store(count=1)
    with pytest.raises(DataError, match=r"poses\.h5: validation needs subjects.*put train\.h5 and valid\.h5"):
        open_dataset(lonely)


def test_open_nothing_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not a known dataset; wanted are train\.h5.*h36m-fetch"):
        open_dataset(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"no")
    with pytest.raises(DataError, match=r"x\.h5: no pose store"):
        open_dataset(tmp_path / "x.h5")


# The command line


def test_command_line_converts_and_shows(source, tmp_path, capsys):
    spoil(source, "missing")
    out = tmp_path / "out"
    code = main(["eth", str(source), str(out), "--size", "48", "--workers", "2", "--skip-bad"])
    text = capsys.readouterr().out
    assert code == 0
    assert "rows        7 with pictures of 48x48 pixels" in text
    assert "1 rows were left out" in text
    assert cv2.imread(str(out / "train.sheet.jpg")).shape[1] == 4 * 256
    assert main(["eth", str(source), str(out), "--size", "48"]) == 2
    assert "error: row 4" in capsys.readouterr().err


def test_command_line_of_poses_alone(tmp_path, capsys):
    trees.videopose3d(tmp_path / "data")
    trees.write_mmpose_cameras(tmp_path / "c.pkl")
    command = ["videopose3d", str(tmp_path / "data"), str(tmp_path / "out"), "--cameras", str(tmp_path / "c.pkl")]
    assert main([*command, "--step", "2"]) == 0
    assert "without pictures" in capsys.readouterr().out
    assert (tmp_path / "out" / "valid.sheet.jpg").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pose3d: pose3d / 1000, "look like metres"),
        (
            lambda pose3d: pose3d[:, np.random.default_rng(0).permutation(17)],
            "wrong unit, or wrong joint order|project",
        ),
        (lambda pose3d: pose3d[:, [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]], r"project .* px"),
    ],
)
def test_inspect_flags_metres_and_wrong_order(source, tmp_path, capsys, change, message):
    file = to_store(source, tmp_path / "out")["train"]
    assert main(["inspect", str(file)]) == 0
    with h5py.File(file, "r+") as opened:
        opened["pose3d"][...] = change(opened["pose3d"][...])
    seal(file)
    assert main(["inspect", str(file), "--out", str(tmp_path / "sheet.png")]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    assert any(re.search(message, problem) for problem in find_problems(PoseStore(file)))


def test_inspect_finds_damaged_pictures(source, tmp_path):
    file = to_store(source, tmp_path / "out")["train"]
    with h5py.File(file, "r+") as opened:
        opened["jpeg"][opened["offset"][2] + 40] ^= 255
    with PoseStore(file) as store:
        assert len(problems := find_problems(store)) == 1
        assert "checksum" in problems[0]
        assert store.where(2) in problems[0]
