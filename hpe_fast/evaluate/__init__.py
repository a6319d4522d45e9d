"""How good the two stages are on a pose store: ``python -m hpe_fast.evaluate --data STORE --weights RUN``.

Printed, and written with ``--json`` and ``--csv``:

=====================  ===============================================================================================
MPJPE                  mean distance of the joints in mm, hips on each other ("protocol 1")
PA-MPJPE               the same after the best rotation, scale and shift of each frame ("protocol 2")
N-MPJPE                the same after the best scale of each frame ("protocol 3")
MPJVE                  mean distance of the joints' movements from frame to frame, where frames are consecutive
3D-PCK@150mm, AUC      share of joints nearer than 150 mm, and its mean over 0, 5, ..., 150 mm
2D EPE                 mean distance of visible joints in pixels of the store's pictures
PCK@0.2 torso          share of visible joints within a fifth of the distance from thorax to hip
=====================  ===============================================================================================

:mod:`hpe_fast.metrics` has the definitions. All 17 joints count, the hip among them, whose 3D error is 0 by
definition, as in the paper's code. Three poses are measured: the mean of the training poses (what can be said without
looking), the lifter on true 2D joints, and the whole pipeline. A *frame mean* counts every known joint of every frame
alike; an *action mean* is the mean of the actions' frame means (VideoPose3D and Martinez et al. report this one, the
paper and mmpose the first).

Equation (1) of *Deep 3D Human Pose Estimation* prints a squared norm. The value that the paper reports is in mm and is
what its code computes: the mean of the distances themselves, the ordinary MPJPE. So it is here.

The JSON file has the keys of a run's ``metrics.json`` (``mpjpe_mm`` by pose, ``pa_mpjpe_mm``, ``pck2d_02_torso``,
``epe2d_px``: frame means) and the other errors beside them, ``action_mean``, ``actions`` and ``joints``. What could
not be measured (no 3D labels, no pictures, no consecutive frames) is null, ``-`` in the table and empty in the CSV.
"""

from hpe_fast.evaluate.command import EvaluateConfig, Measured, evaluate_weights, main
from hpe_fast.evaluate.errors import Evaluation, detection_errors, evaluate, pose_errors, table
from hpe_fast.evaluate.networks import Detections, detect, lift, root_relative
from hpe_fast.evaluate.report import Predictions, predictions, report
from hpe_fast.evaluate.tables import report_csv, report_json, report_text

__all__ = [
    "Detections",
    "EvaluateConfig",
    "Evaluation",
    "Measured",
    "Predictions",
    "detect",
    "detection_errors",
    "evaluate",
    "evaluate_weights",
    "lift",
    "main",
    "pose_errors",
    "predictions",
    "report",
    "report_csv",
    "report_json",
    "report_text",
    "root_relative",
    "table",
]
