"""Evaluation: the errors are those of the rows they belong to, on a store whose answers are known."""

import csv
import json
import math
import shutil
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from conftest import picture
from test_metrics import horn
from torch import nn

from hpe_fast import models
from hpe_fast.data.store import PoseStore, PoseStoreWriter
from hpe_fast.evaluate import (
    Detections,
    EvaluateConfig,
    command,
    detection_errors,
    evaluate,
    evaluate_weights,
    figures,
    main,
    predictions,
    report,
    report_json,
    report_text,
    root_relative,
    table,
)
from hpe_fast.evaluate.report import following, row_errors
from hpe_fast.models import unit_crop
from hpe_fast.ops import OFFICIAL
from hpe_fast.skeleton import JOINTS


class Remembers(nn.Module):
    """A lifter that knows the answer to each 2D pose, plus 30 mm along x for all joints but the hip."""

    def __init__(self, store: PoseStore) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.keys = unit_crop(torch.tensor(store.pose2d), store.image_size)
        self.answers = root_relative(torch.tensor(store.pose3d)).clone()
        self.answers[:, 1:, 0] += 30

    def forward(self, keypoints):
        nearest = torch.cdist(keypoints.flatten(1), self.keys.flatten(1)).argmin(1)
        return self.answers[nearest]


@pytest.fixture
def store(store_path):
    return PoseStore(store_path)


def perfect(store, rows, shift=0.0):
    keypoints = unit_crop(torch.tensor(store.pose2d[rows]) + torch.tensor([shift, 0.0]), store.image_size)
    return Detections(keypoints, torch.ones(len(rows), 17), torch.tensor(rows))


def test_errors_of_known_answers(store):
    rows = [7, 3, 11]  # not in the store's order, and not all of them
    found = perfect(store, rows, shift=0.5)
    errors = evaluate(found, Remembers(store), store, torch.zeros(17, 3)).errors
    expected = 30 * 16 / 17
    assert errors["mpjpe_mm"]["pipeline"] == pytest.approx(expected, rel=1e-4)
    assert errors["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(expected, rel=1e-4)
    target = store.pose3d[rows].astype(np.float64)
    mean_pose = np.linalg.norm(target - target[:, :1], axis=-1).mean()
    assert errors["mpjpe_mm"]["mean_pose"] == pytest.approx(mean_pose, rel=1e-5)
    assert errors["epe2d_px"] == pytest.approx(0.5, rel=1e-3)
    assert errors["pa_mpjpe_mm"]["pipeline"] < expected


def test_rows_without_3d_do_not_count(store):
    store.pose3d = store.pose3d.copy()
    store.pose3d[3] = np.nan
    found = perfect(store, [7, 3, 11])
    errors = evaluate(found, Remembers(PoseStore(store.path)), store, torch.zeros(17, 3)).errors
    assert errors["mpjpe_mm"]["pipeline"] == pytest.approx(30 * 16 / 17, rel=1e-4)


def test_a_detector_that_misses_everything_scores_nothing(store):
    errors = detection_errors(perfect(store, [0, 1], shift=40.0), store)
    assert errors["pck2d_02_torso"] == 0
    assert errors["epe2d_px"] == pytest.approx(40, rel=1e-4)


def test_the_table_holds_every_number(store):
    errors = evaluate(perfect(store, [0]), Remembers(store), store, torch.zeros(17, 3)).errors
    text = table(errors)
    for name in ("mean pose", "lifter on true 2D", "whole pipeline", "PCK@0.2 torso"):
        assert name in text
    assert f"{errors['mpjpe_mm']['mean_pose']:.1f}" in text


def test_bad_arguments_are_one_line(tmp_path, store_path, capsys):
    assert main(["--data", str(store_path), "--weights", str(tmp_path)]) == 2
    assert "hrnet.safetensors" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "none.h5"), "--weights", "no-such-run"]) == 2
    assert "no-such-run" in capsys.readouterr().err


# The report, restated with loops in float64.


def people(seed=0, frames=6):
    """Rows of three recordings: walking (frames 1, 2, 3), sitting (7, 8), and an action without a name (9)."""
    rng = np.random.default_rng(seed)
    actions = ["Walk", "Walk", "Walk", "Sit", "Sit", ""][:frames]
    return (
        rng.normal(0, 300, (frames, 17, 3)),
        rng.uniform(5, 60, (frames, 17, 2)),
        actions,
        [1, 2, 3, 7, 8, 9][:frames],
    )


def write(path, pose3d, pose2d, actions, numbers, *, pictures=False, visible=None):
    with PoseStoreWriter(path, (64, 64)) as writer:
        for i, (deep, flat, action, number) in enumerate(zip(pose3d, pose2d, actions, numbers, strict=True)):
            seen = np.ones(17) if visible is None else visible[i]
            jpeg = picture(i, (64, 64)) if pictures else None
            writer.append(jpeg, flat, seen, pose3d=deep, subject="S1", action=action, camera="c", frame=number)
    return PoseStore(path)


class Shifted(nn.Module):
    """A lifter that is wrong by a known offset for each pose it is shown."""

    def __init__(self, store, offsets):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.keys = unit_crop(torch.tensor(store.pose2d), store.image_size)
        self.answers = torch.nan_to_num(root_relative(torch.tensor(store.pose3d))).double() + torch.tensor(offsets)

    def forward(self, keypoints):
        return self.answers[torch.cdist(keypoints.flatten(1), self.keys.flatten(1)).argmin(1)]


def made_for(store, offsets, detections=None, step=1):
    return predictions(store, Shifted(store, offsets), torch.zeros(17, 3), detections, step)


def restated(made, guess):
    """Errors by loops: {metric: {(frame, joint): value}}."""
    truth, said = made.target.double().numpy(), made.guesses[guess].double().numpy()
    values = {name: {} for name in ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pck3d_150mm", "auc3d", "mpjve_mm")}
    for f in range(len(truth)):
        fitted = horn(said[f], truth[f]) if said[f].any() else np.broadcast_to(truth[f].mean(0), (17, 3))
        scale = (said[f] * truth[f]).sum() / max((said[f] ** 2).sum(), 1e-300)
        for j in range(17):
            distance = math.dist(said[f, j], truth[f, j])
            values["mpjpe_mm"][f, j] = distance
            values["pa_mpjpe_mm"][f, j] = math.dist(fitted[j], truth[f, j])
            values["n_mpjpe_mm"][f, j] = math.dist(scale * said[f, j], truth[f, j])
            values["pck3d_150mm"][f, j] = float(distance < 150)
            values["auc3d"][f, j] = sum(distance < 5 * i for i in range(31)) / 31
            if f in (1, 2, 4):  # frames 2, 3 of one recording and 8 of the other
                moved, really = said[f, j] - said[f - 1, j], truth[f, j] - truth[f - 1, j]
                values["mpjve_mm"][f, j] = math.dist(moved, really)
    return values


def mean_where(values, keep):
    kept = [value for place, value in values.items() if keep(*place)]
    return sum(kept) / len(kept)


def test_the_report_against_loops(tmp_path):
    store = write(tmp_path / "a.h5", *people())
    offsets = np.random.default_rng(1).normal(0, 90, (6, 17, 3))
    made = made_for(store, offsets)
    found = report(made)
    groups = {"Walk": (0, 1, 2), "Sit": (3, 4), "(no name)": (5,)}
    assert set(found["actions"]) == set(groups)
    assert {name: group["rows"] for name, group in found["actions"].items()} == {"Walk": 3, "Sit": 2, "(no name)": 1}
    assert found["consecutive_pairs"] == 3
    for guess in ("lifter_true_2d", "mean_pose"):
        for metric, values in restated(made, guess).items():
            if guess == "mean_pose" and metric == "n_mpjpe_mm":
                continue  # the zero pose has no scale
            assert found[metric][guess] == pytest.approx(mean_where(values, lambda f, j: True), rel=1e-9), metric
            each = {}
            for name, rows in groups.items():
                if metric == "mpjve_mm" and name == "(no name)":
                    assert found["actions"][name][metric][guess] is None
                    continue
                each[name] = mean_where(values, lambda f, j, rows=rows: f in rows)
                assert found["actions"][name][metric][guess] == pytest.approx(each[name], rel=1e-9)
            assert found["action_mean"][metric][guess] == pytest.approx(np.mean(list(each.values())), rel=1e-9)
            for joint, name in enumerate(JOINTS):
                expected = mean_where(values, lambda f, j, joint=joint: j == joint)
                assert found["joints"][name][metric][guess] == pytest.approx(expected, rel=1e-9)
    assert found["mpjpe_mm"]["pipeline"] is None
    assert found["epe2d_px"] is None


def test_the_two_means_differ_where_actions_do(tmp_path):
    store = write(tmp_path / "a.h5", *people())
    offsets = np.zeros((6, 17, 3))
    offsets[:3, :, 0] = 60.0  # only the three walking frames are wrong
    found = report(made_for(store, offsets))
    assert found["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(30)
    assert found["action_mean"]["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(20)
    assert found["pck3d_150mm"]["lifter_true_2d"] == 1


def test_two_dimensional_errors_by_action_and_joint(tmp_path):
    pose3d, pose2d, actions, numbers = people()
    visible = np.random.default_rng(2).integers(0, 2, (6, 17))
    store = write(tmp_path / "a.h5", pose3d, pose2d, actions, numbers, visible=visible)
    rows = torch.tensor([4, 0, 5, 2])  # a part of the store, in another order
    shift = torch.tensor([3.0, 4.0]) * torch.arange(1, 5)[:, None, None]
    keypoints = unit_crop(torch.tensor(store.pose2d)[rows] + shift, store.image_size)
    found = report(made_for(store, np.zeros((6, 17, 3)), Detections(keypoints, torch.ones(4, 17), rows)))
    error = {4: 5.0, 0: 10.0, 5: 15.0, 2: 20.0}
    everywhere = [error[row] for row in error for joint in range(17) if visible[row, joint]]
    assert found["epe2d_px"] == pytest.approx(np.mean(everywhere), rel=1e-4)
    walking = [error[row] for row in (0, 2) for joint in range(17) if visible[row, joint]]
    assert found["actions"]["Walk"]["epe2d_px"] == pytest.approx(np.mean(walking), rel=1e-4)
    head = [error[row] for row in error if visible[row, 10]]
    assert found["joints"]["Head"]["epe2d_px"] == pytest.approx(np.mean(head), rel=1e-4)
    assert found["rows"] == 4
    assert found["consecutive_pairs"] == 0, "rows 0 and 2 are no neighbours"
    hits = []
    for row in error:
        torso = math.dist(store.pose2d[row, 8], store.pose2d[row, 0])
        hits += [error[row] <= 0.2 * torso for joint in range(17) if visible[row, joint]]
    assert found["pck2d_02_torso"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("step", [1, 5])
def test_frames_follow_each_other_only_within_a_recording(tmp_path, step):
    numbers = [1, 1 + step, 1 + 3 * step, 1 + 4 * step, 1 + 5 * step, 1 + 6 * step]
    pose3d, pose2d, *_ = people()
    store = write(tmp_path / "a.h5", pose3d, pose2d, ["A", "A", "A", "A", "B", "B"], numbers)
    assert following(store, torch.arange(6), step).tolist() == [False, True, False, True, False, True]
    assert not following(store, torch.arange(6), step + 2).any()
    assert following(store, torch.tensor([], dtype=torch.int64)).tolist() == []


def test_unknown_joints_count_nowhere_and_unknown_actions_not_in_the_mean(tmp_path):
    pose3d, pose2d, actions, numbers = people()
    pose3d[3:5] = np.nan  # nothing is known of the sitting frames
    pose3d[0, 9] = np.nan  # nor of one joint
    store = write(tmp_path / "a.h5", pose3d, pose2d, actions, numbers)
    offsets = np.zeros((6, 17, 3))
    offsets[:, :, 2] = 34.0
    found = report(made_for(store, offsets))
    assert (found["rows"], found["rows_with_3d"]) == (6, 4)
    assert found["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(34)
    assert found["actions"]["Sit"]["mpjpe_mm"]["lifter_true_2d"] is None
    assert found["action_mean"]["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(34)
    assert found["consecutive_pairs"] == 2


def test_a_prediction_that_is_not_finite_shows(tmp_path):
    store = write(tmp_path / "a.h5", *people())
    offsets = np.zeros((6, 17, 3))
    offsets[1, 4] = np.nan
    found = report(made_for(store, offsets))
    assert math.isnan(found["mpjpe_mm"]["lifter_true_2d"])
    assert math.isnan(found["action_mean"]["mpjpe_mm"]["lifter_true_2d"])
    assert found["actions"]["Sit"]["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(0, abs=1e-4)
    assert json.loads(report_json(found))["mpjpe_mm"]["lifter_true_2d"] == "nan"
    assert "nan" in report_text(found)


# The command line.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    about = {"codec": asdict(OFFICIAL.resized(64, 16)), "trained_on": "nothing"}
    models.save_checkpoint(folder / "hrnet.safetensors", models.hrnet(8, modules=(1, 1, 1), blocks=1).eval(), about)
    about = {"trained_on": "nothing", "mean_pose": np.zeros((17, 3)).tolist()}
    models.save_checkpoint(folder / "lifter.safetensors", models.lifter(width=16).eval(), about)
    return folder


def call(run, store, *arguments):
    return main(["--data", str(store.path), "--weights", str(run), "--device", "cpu", *map(str, arguments)])


def test_table_json_and_csv_say_the_same(run, tmp_path, capsys):
    store = write(tmp_path / "a.h5", *people(), pictures=True)
    assert call(run, store, "--json", tmp_path / "e.json", "--csv", tmp_path / "deep" / "e.csv") == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["trained_on"] == {"detector": "nothing", "lifter": "nothing"}
    assert {"mean_pose", "lifter_true_2d", "pipeline"} == set(found["mpjpe_mm"]) == set(found["pa_mpjpe_mm"])
    assert "frame mean of 6 rows (6 with 3D)" in text
    assert "action mean of 3 actions" in text
    assert "(no name)" in text
    for block in (found, found["action_mean"], found["actions"]["Walk"], found["joints"]["Head"]):
        assert f"{block['mpjpe_mm']['pipeline']:.1f}" in text
        assert f"{block['epe2d_px']:.2f}" in text
    rows = list(csv.DictReader((tmp_path / "deep" / "e.csv").open()))
    assert [(row["scope"], row["mean"]) for row in rows[:3]] == [
        ("all", "frame"),
        ("all", "action"),
        ("action", "frame"),
    ]
    assert len(rows) == 2 + 3 + 17
    assert float(rows[0]["mpjpe_mm.pipeline"]) == found["mpjpe_mm"]["pipeline"]
    assert float(rows[1]["auc3d.mean_pose"]) == found["action_mean"]["auc3d"]["mean_pose"]
    walk = next(row for row in rows if row["name"] == "Walk")
    assert float(walk["pck2d_02_torso"]) == found["actions"]["Walk"]["pck2d_02_torso"]
    assert next(row for row in rows if row["name"] == "(no name)")["mpjve_mm.pipeline"] == ""


def test_the_pipeline_of_the_report_is_training_s(run, tmp_path):
    """One definition: what `evaluate` writes into metrics.json and what the report says."""
    store = write(tmp_path / "a.h5", *people(), pictures=True)
    measured = evaluate_weights(EvaluateConfig(store.path, str(run), device="cpu"))
    made = measured.predictions
    found = Detections(unit_crop(made.keypoints, store.image_size), torch.ones(6, 17), made.rows)
    errors = evaluate(found, measured.lifter, store, torch.zeros(17, 3)).errors
    for name in ("mpjpe_mm", "pa_mpjpe_mm"):
        assert measured.report[name] == pytest.approx(errors[name], rel=1e-5)
    assert measured.report["epe2d_px"] == pytest.approx(errors["epe2d_px"], rel=1e-5)
    assert measured.report["pck2d_02_torso"] == pytest.approx(errors["pck2d_02_torso"])


def test_a_store_without_pictures_measures_the_lifter(run, tmp_path, capsys):
    store = write(tmp_path / "a.h5", *people())
    assert call(run, store, "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["mpjpe_mm"]["pipeline"] is None
    assert found["mpjpe_mm"]["lifter_true_2d"] > 0
    text = capsys.readouterr().out
    assert "No 2D errors: the store has no pictures." in text
    assert "actions (lifter on true 2D" in text
    assert "whole pipeline" not in text


def test_a_store_without_3d_labels_measures_the_keypoints(run, tmp_path, capsys):
    pose3d, *rest = people()
    store = write(tmp_path / "a.h5", np.full_like(pose3d, np.nan), *rest, pictures=True)
    assert call(run, store, "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert set(found["mpjpe_mm"].values()) == {None}
    assert found["epe2d_px"] > 0
    text = capsys.readouterr().out
    assert "No row has 3D joints" in text
    assert "MPJPE" not in text.replace("2D EPE", "")


def test_one_action_has_equal_means(run, tmp_path, capsys):
    pose3d, pose2d, _, numbers = people()
    store = write(tmp_path / "a.h5", pose3d, pose2d, ["Sit"] * 6, numbers)
    assert call(run, store, "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["action_mean"]["mpjpe_mm"] == found["mpjpe_mm"]
    assert "action mean of 1 action " in capsys.readouterr().out


def test_places_that_cannot_be_written_are_known_before_the_work(run, tmp_path, capsys, monkeypatch):
    store = write(tmp_path / "a.h5", *people())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command, "evaluate_weights", lambda config: pytest.fail("measured for nothing"))
    for option, path in (("--json", tmp_path / "file" / "e.json"), ("--csv", tmp_path)):
        assert call(run, store, option, path) == 2
        assert f"error: {option} {path}: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "file"]


def test_an_error_leaves_no_output(run, tmp_path, capsys):
    store = write(tmp_path / "a.h5", *people(), pictures=True)
    content = bytearray(store.path.read_bytes())
    place = content.find(b"\xff\xd8\xff")
    content[place + 200] ^= 0xFF
    store.path.write_bytes(content)
    assert call(run, store, "--json", tmp_path / "e.json") == 2
    assert "row 0" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5"]


def test_settings_without_sense_are_one_line(run, tmp_path, capsys):
    store = write(tmp_path / "a.h5", *people())
    for arguments, message in (
        (["--weights", ""], "--weights is empty"),
        (["--frame-step", "0"], "--frame-step must be at least 1"),
        (["--data", str(tmp_path)], "a folder without valid.h5"),
        (["--device", "tpu"], "device must be"),
    ):
        assert call(run, store, *arguments) == 2
        assert message in capsys.readouterr().err


def test_a_folder_stands_for_its_validation_store_and_no_weights_for_the_bundled_ones(tmp_path, capsys):
    write(tmp_path / "valid.h5", *people())
    assert main(["--data", str(tmp_path), "--device", "cpu", "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert [path.rpartition("/")[2] for path in found["weights"]] == [
        "default.hrnet.safetensors",
        "default.lifter.safetensors",
    ]
    assert "rendered" in found["trained_on"]["detector"]


# Figures.


@pytest.mark.slow
def test_figures_of_a_store(run, tmp_path, capsys):
    store = write(tmp_path / "a.h5", *people(), pictures=True)
    assert call(run, store, "--figures", tmp_path / "figures", "--samples", 4) == 0
    names = ["best.png", "figure1.png", "figure2.png", "grid.png", "poses.html", "worst.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    said = capsys.readouterr().out.rpartition("wrote")[2]
    assert all(name in said for name in names)
    widths = {name: cv2.imread(str(tmp_path / "figures" / name)).shape[1] for name in names if name.endswith("png")}
    assert widths["figure1.png"] == widths["best.png"] == widths["worst.png"] > widths["figure2.png"]
    assert widths["grid.png"] == 4 * 160


def test_best_and_worst_rows_are_those(tmp_path):
    pose3d, *rest = people()
    pose3d[4] = np.nan
    store = write(tmp_path / "a.h5", pose3d, *rest)
    offsets = np.zeros((6, 17, 3))
    offsets[:, :, 0] = np.array([30, 10, 50, 20, 99, 40])[:, None]
    offsets[5, 3] = np.nan
    made = made_for(store, offsets)
    best, worst = figures._extremes(made, 2)
    assert (best, worst) == ([1, 3], [5, 2])
    errors, unit = row_errors(made)
    assert unit == "mm"
    assert errors[:4] == pytest.approx([30, 10, 50, 20], abs=1e-3)


@pytest.mark.slow
def test_figures_without_pictures_or_without_truth(run, tmp_path):
    pose3d, *rest = people()
    bare = write(tmp_path / "bare.h5", pose3d, *rest)
    assert call(run, bare, "--figures", tmp_path / "bare") == 0
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["poses.html"]
    flat = write(tmp_path / "flat.h5", np.full_like(pose3d, np.nan), *rest, pictures=True)
    assert call(run, flat, "--figures", tmp_path / "flat") == 0
    page = (tmp_path / "flat" / "poses.html").read_text()
    assert "px" in page
    assert '"truth":null' in page
    assert len(list((tmp_path / "flat").iterdir())) == 6
    nothing = write(tmp_path / "nothing.h5", np.full_like(pose3d, np.nan), *rest)
    assert call(run, nothing, "--figures", tmp_path / "nothing") == 0
    assert [path.name for path in (tmp_path / "nothing").iterdir()] == ["poses.html"]


def test_a_folder_for_figures_that_cannot_be_made_is_known_before_the_work(run, tmp_path, capsys, monkeypatch):
    store = write(tmp_path / "a.h5", *people())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command, "evaluate_weights", lambda config: pytest.fail("measured for nothing"))
    assert call(run, store, "--figures", tmp_path / "file") == 2
    assert "error: --figures" in capsys.readouterr().err


def test_ctrl_c_writes_nothing(run, tmp_path, capsys, monkeypatch):
    store = write(tmp_path / "a.h5", *people())

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate_weights", interrupted)
    assert call(run, store, "--json", tmp_path / "e.json") == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_two_outputs_are_not_one_file(run, store_path, tmp_path, capsys):
    out = str(tmp_path / "errors")
    assert main(["--data", str(store_path), "--weights", str(run), "--json", out, "--csv", out]) == 2
    assert "is the file of --json as well" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pictures_must_be_square_and_networks_for_these_joints(run, make_store, tmp_path, capsys):
    wide = make_store(size=(64, 96))
    assert main(["--data", str(wide), "--weights", str(run)]) == 2
    assert "pictures of 96 x 64 px" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "coco")
    for about, text in (({"joint_order": "coco17"}, "'coco17' order"), ({"codec": 7}, "holds no HeatmapCodec")):
        models.save_checkpoint(tmp_path / "coco/hrnet.safetensors", models.hrnet(8, modules=(1, 1, 1), blocks=1), about)
        assert main(["--data", str(make_store()), "--weights", str(tmp_path / "coco")]) == 2
        assert text in capsys.readouterr().err
