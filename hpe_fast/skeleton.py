"""The 17-joint skeleton of Human3.6M: the one place that knows the joint order.

The order is that of VideoPose3D, mmpose and the paper's own code. "R" and "L" are the person's right and left.
"""

from __future__ import annotations

JOINTS: tuple[str, ...] = (
    "Hip",
    "RHip",
    "RKnee",
    "RFoot",
    "LHip",
    "LKnee",
    "LFoot",
    "Spine",
    "Thorax",
    "Neck/Nose",
    "Head",
    "LShoulder",
    "LElbow",
    "LWrist",
    "RShoulder",
    "RElbow",
    "RWrist",
)
NUM_JOINTS = len(JOINTS)
ROOT = JOINTS.index("Hip")

#: Parent of each joint, -1 for the root.
PARENTS: tuple[int, ...] = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)

#: Bones as (parent, child).
EDGES: tuple[tuple[int, int], ...] = tuple((p, j) for j, p in enumerate(PARENTS) if p >= 0)

#: Joints that exchange places in a mirrored picture.
FLIP_PAIRS: tuple[tuple[int, int], ...] = ((1, 4), (2, 5), (3, 6), (11, 14), (12, 15), (13, 16))


def _flip_permutation() -> tuple[int, ...]:
    permutation = list(range(NUM_JOINTS))
    for a, b in FLIP_PAIRS:
        permutation[a], permutation[b] = b, a
    return tuple(permutation)


#: Joint j of a mirrored picture shows joint FLIP_PERMUTATION[j] of the original.
FLIP_PERMUTATION: tuple[int, ...] = _flip_permutation()

#: Joints of the right side, of the left side; the rest is the trunk.
RIGHT: tuple[int, ...] = (1, 2, 3, 14, 15, 16)
LEFT: tuple[int, ...] = (4, 5, 6, 11, 12, 13)

#: The two ends of the torso, whose distance is the unit of PCK: thorax and hip.
TORSO: tuple[int, int] = (JOINTS.index("Thorax"), ROOT)

#: Which of Human3.6M's 32 joints the 17 are.
H36M_32_TO_17: tuple[int, ...] = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
