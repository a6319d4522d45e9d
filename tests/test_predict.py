"""The command line: every kind of input, every format, and files that are broken."""

import csv
import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch

from hpe_fast import models, predict
from hpe_fast.ops import OFFICIAL
from hpe_fast.pipeline import load
from hpe_fast.predict.sources import BoxTable, read_frames
from hpe_fast.skeleton import JOINTS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    about = {"codec": asdict(OFFICIAL.resized(64, 16)), "trained_on": "nothing"}
    models.save_checkpoint(folder / "hrnet.safetensors", models.hrnet(8, modules=(1, 1, 1), blocks=1).eval(), about)
    models.save_checkpoint(folder / "lifter.safetensors", models.lifter(width=16).eval(), {"trained_on": "nothing"})
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with two pictures of one name's stem, a broken one, and a video beside it."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    (folder / "deep").mkdir()
    for name, size in (("a.jpg", (50, 70)), ("deep/a.png", (64, 64)), ("grey.png", (40, 40))):
        picture = rng.integers(0, 256, (*size, 3) if name != "grey.png" else size, dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), picture)
    (folder / "notes.txt").write_text("not looked at")
    video = cv2.VideoWriter(str(folder / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(5):
        video.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    video.release()
    return folder


def call(run, *arguments):
    return predict.main([*map(str, arguments), "--weights", str(run), "--device", "cpu"])


def test_a_folder_in_every_format(run, media, tmp_path):
    assert call(run, media, "--out", tmp_path, "--format", "json", "csv", "coco", "--batch-size", "3") == 0
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert found["format"] == "hpe_fast/predictions/1"
    assert found["joints"] == list(JOINTS)
    assert found["trained_on"] == {"detector": "nothing", "lifter": "nothing"}
    assert found["failed"] == []
    names = [(row["file"].removeprefix(f"{media}/"), row["frame"]) for row in found["images"]]
    assert names == [("a.jpg", None), ("deep/a.png", None), ("grey.png", None), *(("walk.mp4", i) for i in range(5))]
    assert [(row["height"], row["width"]) for row in found["images"][:2]] == [(50, 70), (64, 64)]

    first = found["images"][0]["people"][0]
    assert first["box"] is None
    picture = cv2.cvtColor(cv2.imread(str(media / "a.jpg")), cv2.COLOR_BGR2RGB)
    poses = load(run, "cpu")(picture)
    np.testing.assert_allclose(first["keypoints"], poses.keypoints[0], atol=1e-3)
    np.testing.assert_allclose(first["joints3d"], poses.joints3d[0], atol=0.5)

    with (tmp_path / "predictions.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[:4] == ["Id", "Hip_x", "Hip_y", "Hip_z"]
    assert len(header) == 52
    assert header[28:31] == ["Neck/Nose_x", "Neck/Nose_y", "Neck/Nose_z"]
    assert [row[0] for row in rows] == [str(i + 1) for i in range(8)]
    people = [person for row in found["images"] for person in row["people"]]
    np.testing.assert_allclose(
        [[float(v) for v in row[1:]] for row in rows], [np.ravel(person["joints3d"]) for person in people], atol=1e-3
    )

    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["id"] for image in coco["images"]] == list(range(1, 9))
    assert coco["images"][3]["file_name"].endswith("walk.mp4#0")
    assert [annotation["image_id"] for annotation in coco["annotations"]] == list(range(1, 9))
    assert len(coco["annotations"][0]["keypoints"]) == 51
    assert coco["annotations"][0]["keypoints"][:2] == first["keypoints"][0]
    assert coco["categories"][0]["skeleton"][0] == [1, 2]

    drawn = sorted(path.name for path in (tmp_path / "annotated").iterdir())
    assert drawn == ["a-2.jpg", "a.jpg", "grey.jpg", "walk.mp4"]
    assert cv2.imread(str(tmp_path / "annotated" / "a.jpg")).shape == (50, 70, 3)
    assert len(list(read_frames(str(tmp_path / "annotated" / "walk.mp4")))) == 5


def test_one_bad_file_does_not_stop_the_rest(run, media, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((media / "a.jpg").read_bytes()[:40])
    fake = tmp_path / "fake.mp4"
    fake.write_bytes(b"no video")
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    inputs = [broken, media / "a.jpg", tmp_path / "missing.png", fake, empty, media / "grey.png"]
    assert call(run, *inputs, "--out", out, "--no-draw") == 1
    found = json.loads((out / "predictions.json").read_text())
    assert [row["file"] for row in found["images"]] == [str(media / "a.jpg"), str(media / "grey.png")]
    reasons = {row["file"]: row["reason"] for row in found["failed"]}
    assert set(reasons) == {str(path) for path in (broken, tmp_path / "missing.png", fake, empty)}
    assert "not a picture" in reasons[str(broken)]
    assert "not a video" in reasons[str(fake)]
    assert len((out / "failed.txt").read_text().splitlines()) == 4
    assert "missing.png: no such file" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["failed.txt", "predictions.json"]
    assert call(run, media / "a.jpg", "--out", out, "--no-draw") == 0
    assert not (out / "failed.txt").exists()


def test_nothing_at_all_is_an_error(run, tmp_path, capsys):
    assert call(run, tmp_path / "missing.png", "--out", tmp_path / "out") == 2
    assert predict.main([str(tmp_path), "--out", str(tmp_path / "out"), "--weights", "no/such/run"]) == 2
    assert "nothing to look at" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_boxes_of_pictures_and_frames(run, media, tmp_path, kind):
    boxes = tmp_path / f"boxes.{kind}"
    if kind == "json":
        content = {"a.jpg": [[5, 5, 20, 40], [30, 1, 30, 45]], "walk.mp4": {"1": [[0, 0, 64, 48]]}}
        boxes.write_text(json.dumps(content))
    else:
        boxes.write_text("file,frame,x,y,width,height\na.jpg,,5,5,20,40\na.jpg,,30,1,30,45\nwalk.mp4,1,0,0,64,48\n")
    out = tmp_path / "out"
    inputs = [media / "a.jpg", media / "walk.mp4", media / "grey.png"]
    assert call(run, *inputs, "--out", out, "--boxes", boxes, "--max-frames", 3) == 1
    found = json.loads((out / "predictions.json").read_text())
    assert [len(row["people"]) for row in found["images"]] == [2, 0, 1, 0]
    assert found["images"][0]["people"][1]["box"] == [30, 1, 30, 45]
    assert found["failed"] == [{"file": str(media / "grey.png"), "reason": f"not in {boxes}"}]


def test_bad_boxes(run, media, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.jpg": [[500, 5, 20, 40]], "grey.png": [[1, 1, 9, 9]]}))
    assert call(run, media / "a.jpg", media / "grey.png", "--out", tmp_path / "out", "--boxes", boxes) == 1
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["file"] for row in found["images"]] == [str(media / "grey.png")]
    assert "lies outside its picture" in found["failed"][0]["reason"]
    for name, content in (
        ("a.json", '{"a.jpg": [[1, 2]]}'),
        ("b.json", "["),
        ("c.json", "[1]"),
        ("d.csv", "file,x\na,1\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            BoxTable(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in \.json or \.csv"):
        BoxTable(tmp_path / "boxes.txt")


def test_ctrl_c_keeps_what_was_found(run, media, tmp_path, monkeypatch):
    original, seen = predict.read_frames, []

    def interrupted(source, *arguments):
        for frame in original(source, *arguments):
            seen.append(frame)
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(predict, "read_frames", interrupted)
    assert call(run, media / "walk.mp4", "--out", tmp_path, "--batch-size", 1) == 130
    assert len(json.loads((tmp_path / "predictions.json").read_text())["images"]) == 2
    assert len(list(read_frames(str(tmp_path / "annotated" / "walk.mp4")))) == 2


def test_an_error_leaves_nothing_half_written(run, media, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(predict.writers._Json, "finish", fails)
    assert call(run, media / "a.jpg", "--out", tmp_path, "--no-draw") == 2
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_turned_as_their_camera_was(tmp_path):
    """EXIF orientation 6: the picture is stored on its side."""
    ok, data = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))
    assert ok
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "turned.jpg").write_bytes(data.tobytes()[:2] + segment + data.tobytes()[2:])
    (frame,) = read_frames(str(tmp_path / "turned.jpg"))
    assert frame.image.shape == (30, 20, 3)
