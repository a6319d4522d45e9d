"""A report as text for people, as CSV for a spreadsheet, and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from hpe_fast.evaluate.report import GUESSES, METRICS_2D, METRICS_3D

#: Heading and digits of each error.
_SHOWN = {
    "mpjpe_mm": ("MPJPE mm", 1),
    "pa_mpjpe_mm": ("PA-MPJPE mm", 1),
    "n_mpjpe_mm": ("N-MPJPE mm", 1),
    "mpjve_mm": ("MPJVE mm", 1),
    "pck3d_150mm": ("3D-PCK@150mm", 3),
    "auc3d": ("AUC", 3),
    "epe2d_px": ("2D EPE px", 2),
    "pck2d_02_torso": ("PCK@0.2 torso", 3),
}


def report_text(found: dict[str, Any]) -> str:
    """The report for a person: frame mean, action mean, each action and each joint; mm, px and shares of 1.

    Example:
        >>> import torch
        >>> from hpe_fast.evaluate.report import Predictions, report
        >>> deep, flat = torch.zeros(2, 17, 3), torch.zeros(2, 17, 2)
        >>> made = Predictions(
        ...     rows=torch.arange(2), target=deep, guesses={"lifter_true_2d": deep + torch.tensor([3.0, 4.0, 0.0])},
        ...     target2d=flat, visible=torch.ones(2, 17) > 0, keypoints=None, actions=["Walk", "Walk"],
        ...     follows=torch.tensor([False, True]))
        >>> print(report_text(report(made)).splitlines()[1][:48])
        lifter on true 2D                          5.0
    """
    best = best_guess(found)
    count = len(found["actions"])
    blocks = [
        _by_guess(f"frame mean of {found['rows']} rows ({found['rows_with_3d']} with 3D)", found),
        _by_guess(f"action mean of {count} action{'s' * (count != 1)}", found["action_mean"]),
        _by_name(f"actions ({GUESSES[best]}, frame means)", found["actions"], best),
        _by_name(f"joints ({GUESSES[best]}, frame means)", found["joints"], best),
        "\n".join(_remarks(found)),
    ]
    return "\n\n".join(block for block in blocks if block)


def best_guess(found: dict[str, Any]) -> str:
    """The pipeline, or without pictures the lifter on true 2D."""
    return "pipeline" if found["epe2d_px"] is not None else "lifter_true_2d"


def _by_guess(title: str, errors: dict[str, Any]) -> str:
    rows = [
        [label, *(_number(name, errors[name][guess]) for name in METRICS_3D)]
        for guess, label in GUESSES.items()
        if errors["mpjpe_mm"][guess] is not None
    ]
    text = _grid([title, *(_SHOWN[name][0] for name in METRICS_3D)], rows) if rows else title
    if errors["epe2d_px"] is None:
        return text
    flat = f"2D: mean error {_number('epe2d_px', errors['epe2d_px'])} px"
    return f"{text}\n{flat}, PCK@0.2 torso {_number('pck2d_02_torso', errors['pck2d_02_torso'])}"


def _by_name(title: str, groups: dict[str, Any], guess: str) -> str:
    picked = {
        label: {name: _pick(group, name, guess) for name in (*METRICS_3D, *METRICS_2D)}
        for label, group in groups.items()
    }
    names = [name for name in _SHOWN if any(values[name] is not None for values in picked.values())]
    counts = [[str(group["rows"])] if "rows" in group else [] for group in groups.values()]
    rows = [
        [label, *count, *(_number(name, values[name]) for name in names)]
        for (label, values), count in zip(picked.items(), counts, strict=True)
    ]
    return (
        _grid([title, *(["rows"] if any(counts) else []), *(_SHOWN[name][0] for name in names)], rows) if names else ""
    )


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = []
    if not found["rows_with_3d"]:
        lines.append("No row has 3D joints: no 3D errors.")
    elif not found["consecutive_pairs"]:
        step = found.get("frame_step", 1)
        lines.append(
            f"MPJVE: no two neighbouring rows of one subject, action and camera are {step} frame{'s' * (step != 1)} "
            "apart (--frame-step)."
        )
    else:
        lines.append(f"MPJVE: {found['consecutive_pairs']} pairs of frames, {found.get('frame_step', 1)} apart.")
    if found["epe2d_px"] is None:
        lines.append("No 2D errors: the store has no pictures." if not found.get("pictures") else "No visible joint.")
    return lines


def _pick(group: dict[str, Any], name: str, guess: str) -> float | None:
    return group[name] if name in METRICS_2D else group[name][guess]


def _number(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{_SHOWN[name][1]}f}"


def _grid(heading: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = []
    for first, *cells in (heading, *rows):
        lines.append("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in lines)


def report_csv(found: dict[str, Any]) -> str:
    """One line for the frame mean, the action mean, each action and each joint; empty cells are not measured.

    Example:
        >>> import torch
        >>> from hpe_fast.evaluate.report import Predictions, report
        >>> deep, flat = torch.zeros(2, 17, 3), torch.zeros(2, 17, 2)
        >>> made = Predictions(
        ...     rows=torch.arange(2), target=deep, guesses={"lifter_true_2d": deep + torch.tensor([3.0, 4.0, 0.0])},
        ...     target2d=flat, visible=torch.ones(2, 17) > 0, keypoints=None, actions=["Walk", "Walk"],
        ...     follows=torch.tensor([False, True]))
        >>> [line[:14] for line in report_csv(report(made)).splitlines()[1:4]]
        ['all,,frame,2,,', 'all,,action,2,', 'action,Walk,fr']
    """
    columns = [(name, guess) for name in METRICS_3D for guess in GUESSES] + [(name, "") for name in METRICS_2D]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heading = [f"{name}.{guess}" if guess else name for name, guess in columns]
    writer.writerow(["scope", "name", "mean", "rows", *heading])
    groups = [("all", "", "frame", found), ("all", "", "action", found["action_mean"])]
    groups += [("action", name, "frame", group) for name, group in found["actions"].items()]
    groups += [("joint", name, "frame", group) for name, group in found["joints"].items()]
    for scope, name, mean, group in groups:
        values = [_pick(group, metric, guess) for metric, guess in columns]
        rows = group.get("rows", found["rows"])
        writer.writerow([scope, name, mean, rows, *("" if v is None else repr(v) for v in values)])
    return file.getvalue()


def report_json(found: dict[str, Any]) -> str:
    """Strict JSON: null where nothing could be measured, the text "nan" where a prediction is not finite.

    Example:
        >>> import torch
        >>> from hpe_fast.evaluate.report import Predictions, report
        >>> deep, flat = torch.zeros(2, 17, 3), torch.zeros(2, 17, 2)
        >>> made = Predictions(
        ...     rows=torch.arange(2), target=deep, guesses={"lifter_true_2d": deep + torch.tensor([3.0, 4.0, 0.0])},
        ...     target2d=flat, visible=torch.ones(2, 17) > 0, keypoints=None, actions=["Walk", "Walk"],
        ...     follows=torch.tensor([False, True]))
        >>> json.loads(report_json(report(made)))["joints"]["Head"]["mpjpe_mm"]["lifter_true_2d"]
        5.0
    """
    return json.dumps(_strict(found), indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
