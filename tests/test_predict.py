"""The command line: every kind of input, every format, and files that are broken."""

import csv
import gzip
import json
import os
import shutil
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hpe_fast import models, predict
from hpe_fast.ops import OFFICIAL
from hpe_fast.pipeline import load
from hpe_fast.predict import view
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
    (tmp_path / "failed.txt").write_text("of an earlier run")
    assert call(run, media / "walk.mp4", "--out", tmp_path, "--batch-size", 1) == 130
    assert len(json.loads((tmp_path / "predictions.json").read_text())["images"]) == 2
    assert len(list(read_frames(str(tmp_path / "annotated" / "walk.mp4")))) == 2
    assert not (tmp_path / "failed.txt").exists()


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(20, 30), (24, 24)])
def test_transparent_pictures_are_turned_with_their_alpha(tmp_path, orientation, size):
    rgba = np.random.default_rng(0).integers(0, 256, (*size, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))).astype(float)
    (frame,) = read_frames(str(tmp_path / "a.png"))
    np.testing.assert_allclose(frame.image, turned[..., :3] * turned[..., 3:] / 255, atol=0.51)


def test_every_kind_of_picture(tmp_path):
    """Grey, 16 bits, transparent, tiny and thin: uint8 RGB, as the picture looks."""
    color = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    alpha = np.zeros((6, 9, 1), np.uint8)
    alpha[:, :4] = 255
    written = {
        "grey.png": color[..., 0],
        "deep.png": color.astype(np.uint16) * 257,
        "deep_grey.tif": color[..., 0].astype(np.uint16) * 257,
        "clear.png": np.dstack([color, alpha]),
        "deep_clear.png": np.dstack([color, alpha]).astype(np.uint16) * 257,
        "one.png": color[:1, :1],
        "thin.png": np.tile(color[:1], (1, 300, 1)),
    }
    read = {}
    for name, content in written.items():
        assert cv2.imwrite(str(tmp_path / name), content)
        (frame,) = read_frames(str(tmp_path / name))
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == (*content.shape[:2], 3)
        read[name] = frame.image[..., ::-1].astype(int)
    for name in ("grey.png", "deep_grey.tif"):
        np.testing.assert_allclose(read[name], np.repeat(color[..., :1], 3, axis=2), atol=1)
    np.testing.assert_allclose(read["deep.png"], color, atol=1)
    for name in ("clear.png", "deep_clear.png"):
        np.testing.assert_allclose(read[name][:, :4], color[:, :4], atol=1)
        assert (read[name][:, 4:] == 0).all(), "what is transparent lies over black"


def test_odd_files_of_a_folder(run, media, tmp_path):
    folder = tmp_path / "in"
    (folder / "folder.jpg").mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "zero.jpg").touch()
    (folder / "zero.mp4").touch()
    (folder / "text.png").write_text("hello")
    (folder / "LOUD.JPG").write_bytes((media / "a.jpg").read_bytes())
    (folder / "folder.jpg" / "ünï cödé.jpg").write_bytes((media / "a.jpg").read_bytes())
    out = folder / "out"
    for _ in range(2):  # the second time there are pictures in out, which are none to look at
        assert call(run, folder, "--out", out) == 1
        found = json.loads((out / "predictions.json").read_text())
        assert [row["file"].rpartition("/")[2] for row in found["images"]] == ["LOUD.JPG", "ünï cödé.jpg"]
        reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in found["failed"]}
        assert reasons["link.png"] == "No such file or directory"
        assert reasons["zero.jpg"] == reasons["zero.mp4"] == "an empty file"
        assert "not a picture" in reasons["text.png"]
        assert len(reasons) == 4


def test_a_cut_video_keeps_its_beginning_and_is_listed(run, tmp_path):
    whole = tmp_path / "whole.avi"
    video = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(30):
        video.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    video.release()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert call(run, cut, whole, "--out", tmp_path / "out") == 1
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    counts = [sum(row["file"] == str(path) for row in found["images"]) for path in (cut, whole)]
    assert 5 < counts[0] < 25
    assert counts[1] == 30
    (failed,) = found["failed"]
    assert failed["file"] == str(cut)
    assert failed["reason"].startswith(f"ends after {counts[0]} of 30 frames")
    assert len(list(read_frames(str(whole)))) == 30
    assert call(run, cut, "--out", tmp_path / "few", "--max-frames", 3) == 0, "frames nobody asked for may be missing"


def test_json_names_the_annotated_files(run, media, tmp_path):
    assert call(run, media, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "predictions.json").read_text())
    names = {row["file"].removeprefix(f"{media}/"): row["annotated"] for row in found["images"]}
    assert names["a.jpg"] == "annotated/a.jpg"
    assert names["deep/a.png"] == "annotated/a-2.jpg"
    assert names["walk.mp4"] == "annotated/walk.mp4"
    for name in names.values():
        assert (tmp_path / name).is_file()
    assert cv2.imread(str(tmp_path / names["deep/a.png"])).shape == (64, 64, 3)
    assert call(run, media / "a.jpg", "--out", tmp_path / "bare", "--no-draw") == 0
    assert json.loads((tmp_path / "bare" / "predictions.json").read_text())["images"][0]["annotated"] is None


def test_the_submission_is_compressed_as_well(run, media, tmp_path):
    assert call(run, media, "--out", tmp_path, "--format", "csv", "csv.gz", "--no-draw") == 0
    packed = gzip.decompress((tmp_path / "predictions.csv.gz").read_bytes())
    assert packed == (tmp_path / "predictions.csv").read_bytes()


def test_the_page_shows_everybody(run, media, tmp_path, monkeypatch, capsys):
    assert call(run, media, "--out", tmp_path, "--no-draw", "--view") == 0
    text = (tmp_path / "poses.html").read_text(encoding="utf-8")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    found = json.loads((tmp_path / "predictions.json").read_text())
    people = [person for row in found["images"] for person in row["people"]]
    assert len(data["poses"]) == len(people) == 8
    np.testing.assert_allclose(data["poses"][2]["joints"], people[2]["joints3d"], atol=0.06)
    assert data["poses"][7]["label"] == f"{media / 'walk.mp4'}, frame 4"
    assert data["rate"] == 10
    monkeypatch.setattr(view.View.__init__, "__defaults__", (3,))
    assert call(run, media, "--out", tmp_path, "--no-draw", "--view") == 0
    assert "shows the first 3 people, 5 are left out" in capsys.readouterr().err


def test_boxes_of_files_that_are_not_there_are_told(run, media, tmp_path, capsys):
    boxes = tmp_path / "boxes.csv"
    boxes.write_bytes("\ufefffile, x, y, width, height\na.jpg,1,1,30,30\nb.jpg,1,1,30,30\n".encode())
    assert call(run, media / "a.jpg", "--out", tmp_path / "out", "--boxes", boxes, "--no-draw") == 0
    assert "boxes of what was not looked at: b.jpg" in capsys.readouterr().err
    for name, content in (("latin.csv", b"file,x,y,width,height\n\xe4.jpg,1,1,2,2\n"), ("latin.json", b'{"\xe4": []}')):
        (tmp_path / name).write_bytes(content)
        assert call(run, media / "a.jpg", "--out", tmp_path / "out", "--boxes", tmp_path / name) == 2
        assert name in capsys.readouterr().err


def test_settings_without_sense_and_cameras_that_are_not_there(run, media, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--batch-size", 0], "--batch-size must be at least 1"),
        (["--max-frames", 0], "--max-frames must be at least 1"),
        (["--out", tmp_path / "file"], "is a file, a folder is wanted"),
        (["--out", tmp_path / "file" / "deep"], "Not a directory"),
        (["--weights", ""], "--weights is empty"),
        (["--boxes", tmp_path / "none.json"], "none.json"),
    ):
        assert (
            predict.main(list(map(str, [media / "a.jpg", "--out", tmp_path / "x", "--weights", run, *arguments]))) == 2
        )
        assert message in capsys.readouterr().err
    assert call(run, "camera:77", "camera:front", media / "a.jpg", "--out", tmp_path / "out", "--no-draw") == 1
    failed = json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"]
    assert [row["reason"] for row in failed] == [
        "no such camera, or it gives no pictures",
        "a camera is named camera:0, camera:1, ...",
    ]


def test_large_pictures_go_through_in_small_lists(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK_BYTES", 250)
    frames = [predict.Frame(str(i), None, np.zeros((10, 10, 1), np.uint8), None) for i in range(7)]
    assert [len(chunk) for chunk in predict._chunks(frames, 4)] == [3, 3, 1]
    assert [len(chunk) for chunk in predict._chunks(frames, 2)] == [2, 2, 2, 1]


def test_a_video_that_cannot_be_written_does_not_stop_the_rest(run, media, tmp_path, monkeypatch):
    class Closed:
        def __init__(self, *_):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", type("Writer", (Closed,), {"fourcc": staticmethod(lambda *_: 0)}))
    assert call(run, media / "walk.mp4", media / "a.jpg", "--out", tmp_path) == 1
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert len(found["images"]) == 6
    (failed,) = found["failed"]
    assert failed["reason"] == "OpenCV cannot write a video of 64 x 48 pixels"
    assert [path.name for path in (tmp_path / "annotated").iterdir()] == ["a.jpg"]
    assert {row["annotated"] for row in found["images"]} == {None, "annotated/a.jpg"}


def test_pictures_that_would_fill_the_memory_are_refused(run, media, tmp_path):
    assert cv2.imwrite(str(tmp_path / "long.png"), np.zeros((2, 20_001, 3), np.uint8))
    assert call(run, tmp_path / "long.png", media / "a.jpg", "--out", tmp_path / "out", "--no-draw") == 1
    (failed,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"]
    assert failed["reason"].startswith("20001 x 2 pixels: longer than 20000")


def test_what_is_not_finite_is_null_in_json():
    assert predict.writers._rounded(np.array([[1.23456, np.nan], [np.inf, 2]]), 2) == [[1.23, None], [None, 2.0]]


def test_boxes_by_frame_are_for_videos_and_others_for_pictures(run, media, tmp_path, capsys):
    boxes = {"a.jpg": {"0": [[1, 1, 30, 30]]}, "walk.mp4": [[1, 1, 30, 30]]}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    out = tmp_path / "out"
    assert call(run, media / "a.jpg", media / "walk.mp4", "--out", out, "--boxes", path, "--no-draw") == 1
    failed = json.loads((out / "predictions.json").read_text())["failed"]
    assert "a picture, but" in failed[0]["reason"]
    assert "a video, but" in failed[1]["reason"]
    path.write_text(json.dumps({"walk.mp4": {"0": [[1, 1, 30, 30]], "77": [[1, 1, 30, 30]]}}))
    capsys.readouterr()
    assert call(run, media / "walk.mp4", "--out", out, "--boxes", path, "--no-draw") == 0
    assert "not looked at: walk.mp4 frame 77" in capsys.readouterr().err


def test_names_as_long_as_a_file_system_allows_and_of_any_bytes(run, media, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(media / "a.jpg", folder / ("n" * 251 + ".jpg"))
    bad = os.fsencode(folder) + b"/\xe4.jpg"
    with open(bad, "wb") as file:
        file.write(b"no picture")
    shutil.copy(media / "a.jpg", os.fsencode(folder) + b"/\xf6.jpg")
    arguments = [str(folder), "--out", str(tmp_path / "out"), "--weights", str(run), "--format", "json", "csv", "coco"]
    assert predict.main(arguments) == 1
    assert os.fsencode(folder) + b"/\xe4.jpg: " in (tmp_path / "out" / "failed.txt").read_bytes()
    assert len(list((tmp_path / "out" / "annotated").iterdir())) == 2
