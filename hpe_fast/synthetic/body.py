"""The body: shapes, relaxed hands, joints and clothing coordinates of people, from ``anny`` (rig ``cmu_mb``).

World and body frame: metres, z up; at rest the body faces -y and its left side is +x. Rotations act on column vectors.
V = 19,158 vertices of MakeHuman's base mesh "hm08" (anny's topology ``anny-full``), of which the first ``SKIN`` are the
person and the rest is geometry that clothes are bound to. J = 31 bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpe_fast.synthetic.rotations import axis_angle, rotation_about

SKIN = 13380
_NOSE, _CROWN = 5054, 881  # tip of the nose and top of the skull, vertices of hm08
#: Of each of the 17 joints: the bone that carries it, and where it is at rest: heads of bones of anny's full rig (their
#: mean) or a vertex.
_JOINT_RULE: tuple[tuple[str, tuple[str, ...] | int], ...] = (
    ("Hips", ("upperleg01.R", "upperleg01.L")),
    ("RightUpLeg", ("upperleg01.R",)),
    ("RightLeg", ("lowerleg01.R",)),
    ("RightFoot", ("foot.R",)),
    ("LeftUpLeg", ("upperleg01.L",)),
    ("LeftLeg", ("lowerleg01.L",)),
    ("LeftFoot", ("foot.L",)),
    ("LowerBack", ("spine03",)),
    ("Neck", ("neck01",)),
    ("Head", _NOSE),
    ("Head", _CROWN),
    ("LeftArm", ("upperarm01.L",)),
    ("LeftForeArm", ("lowerarm01.L",)),
    ("LeftHand", ("wrist.L",)),
    ("RightArm", ("upperarm01.R",)),
    ("RightForeArm", ("lowerarm01.R",)),
    ("RightHand", ("wrist.R",)),
)
AGES: dict[str, tuple[float, float]] = {"young": (0.60, 0.74), "middleage": (0.74, 0.88), "old": (0.88, 0.97)}
_BONES_A_VERTEX = 4


@dataclass(frozen=True)
class Shape:
    """One person at rest: vertices [V,3], heads of the bones [J,3], joints [17,3], height of the skin; metres."""

    vertices: np.ndarray
    heads: np.ndarray
    joints: np.ndarray
    height: float


class Body:
    """Shapes and poses bodies. anny keeps what it prepares (a minute the first time) in ``$ANNY_CACHE_DIR``."""

    def __init__(self) -> None:
        import anny
        import torch

        self._rig, self._full_rig = (
            anny.Anny(rig=rig, topology="anny-full", skinning_method="lbs").to(torch.float32)
            for rig in ("cmu_mb", "anny")
        )
        self.bones: list[str] = list(self._rig.bone_labels)
        self.parents = [int(parent) for parent in self._rig.bone_parents]
        self.weights = _dense_weights(self._rig)
        self.faces, corners = self._rig.faces.numpy(), self._rig.face_texture_coordinate_indices.numpy()
        self.uv = self._rig.texture_coordinates.numpy()[corners].astype(np.float32)
        self.bone_index, self.bone_weight = strongest(self.weights)
        self._joint_bones = [self.bones.index(bone) for bone, _ in _JOINT_RULE]
        self._fingers = _Fingers(list(self._full_rig.bone_labels), list(self._full_rig.bone_parents), self._full_rig)
        self.place = self._places(self.shape({}, np.zeros(3)))

    def shape(self, phenotype: dict[str, float], curl: np.ndarray) -> Shape:
        """The rest body of anny's phenotype (numbers in [0, 1]), with finger joints bent by ``curl`` [3] radians."""
        vertices, heads = _rest(self._rig, phenotype)
        _, full_heads = _rest(self._full_rig, phenotype)
        labels = list(self._full_rig.bone_labels)
        points = [
            vertices[rule] if isinstance(rule, int) else full_heads[[labels.index(bone) for bone in rule]].mean(axis=0)
            for _, rule in _JOINT_RULE
        ]
        relaxed = self._fingers.relax(vertices, full_heads, curl)
        return Shape(relaxed, heads, np.stack(points), float(np.ptp(vertices[:SKIN, 2])))

    def pose(self, shape: Shape, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bones turned to ``turns`` [J,3,3]: their shifts [J,3] (x goes to turn x + shift), and the joints [17,3]."""
        heads = np.zeros((len(self.parents), 3))
        for bone, parent in enumerate(self.parents):
            at = shape.heads[bone]
            heads[bone] = at if parent < 0 else heads[parent] + turns[parent] @ (at - shape.heads[parent])
        shifts = heads - np.einsum("bij,bj->bi", turns, shape.heads)
        bones = self._joint_bones
        joints = np.einsum("kij,kj->ki", turns[bones], shape.joints) + shifts[bones]
        return shifts, joints

    def _places(self, shape: Shape) -> np.ndarray:
        """Where on a body a vertex is, for painting clothes: float32 [V,3] of trunk, arm, scalp.

        trunk: -1 ankle, 0 crotch, 1 base of the neck, more above. arm: 0 shoulder, 0.5 elbow, 1 wrist; 0 off the arms.
        scalp: above 0 where hair grows, larger towards the crown.
        """
        at, joints = shape.vertices, shape.joints

        def weight(*names: str) -> np.ndarray:
            return self.weights[:, [i for i, bone in enumerate(self.bones) if any(name in bone for name in names)]].sum(
                1
            )

        ankle, hip, neck = joints[3, 2], joints[0, 2] - 0.02, joints[8, 2]
        trunk = np.where(at[:, 2] > hip, (at[:, 2] - hip) / (neck - hip), (at[:, 2] - hip) / (hip - ankle))
        arm = np.zeros(len(at))
        for side, shoulder in (("Left", 11), ("Right", 14)):
            on = weight(f"{side}Arm", f"{side}ForeArm", f"{side}Hand", f"{side}Finger", f"{side[0]}Thumb")
            upper, lower = joints[shoulder + 1] - joints[shoulder], joints[shoulder + 2] - joints[shoulder + 1]
            first = (at - joints[shoulder]) @ upper / (upper @ upper)
            second = (at - joints[shoulder + 1]) @ lower / (lower @ lower)
            along = np.clip(first, 0.06, 1) / 2 + np.clip(second, 0, 1.5) / 2
            arm = np.where(on > 0.5, along, arm)
            trunk = np.where(on > 0.5, 0.75, trunk)
        head = joints[10] - joints[8]
        height = (at[:, 2] - joints[8, 2]) / head[2]
        behind = (at[:, 1] - joints[10, 1]) / head[2]
        scalp = np.where(weight("Head", "Neck1") > 0.5, np.minimum(height - 0.62, 0.4) + 1.1 * behind, -9.0)
        ears = np.abs(at[:, 0] - joints[8, 0]) / head[2] > 0.295
        scalp = np.where((height < 0.5) | ears, -9.0, scalp)
        return np.stack([trunk, arm, scalp], axis=1).astype(np.float32)


def strongest(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest weights of each vertex: bones int32 [N,4] and weights float32 [N,4] that sum to one."""
    bones = np.argsort(-weights, axis=1, kind="stable")[:, :_BONES_A_VERTEX]
    kept = np.take_along_axis(weights, bones, axis=1)
    return bones.astype(np.int32), (kept / kept.sum(axis=1, keepdims=True)).astype(np.float32)


def random_phenotype(rng: np.random.Generator, female: bool, age: str) -> dict[str, float]:
    """An adult for anny, about 1.50 to 1.95 m tall."""
    spread = abs(rng.normal(0, 0.06))
    return {
        "gender": min(spread, 1.0) if not female else max(1.0 - spread, 0.0),
        "age": rng.uniform(*AGES[age]),
        "muscle": float(np.clip(rng.normal(0.5, 0.17), 0.08, 0.95)),
        "weight": float(np.clip(rng.normal(0.52, 0.2), 0.06, 1.0)),
        "height": float(np.clip(rng.normal(0.36, 0.06), 0.22, 0.5)),
        "proportions": float(np.clip(rng.normal(0.6, 0.15), 0.15, 1)),
    }


def _rest(rig, phenotype: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    still = torch.eye(4)[None, None].repeat(1, rig.bone_count, 1, 1)
    with torch.no_grad():
        values = {name: torch.tensor([float(value)]) for name, value in phenotype.items()}
        out = rig(phenotype_kwargs=values, pose_parameters=still)
    return out["rest_vertices"][0].numpy().astype(np.float64), out["rest_bone_heads"][0].numpy().astype(np.float64)


def _dense_weights(rig) -> np.ndarray:
    index, weight = rig.vertex_bone_indices.numpy(), rig.vertex_bone_weights.numpy()
    dense = np.zeros((len(index), rig.bone_count), np.float32)
    for column in range(index.shape[1]):
        np.add.at(dense, (np.arange(len(index)), index[:, column]), weight[:, column])
    return dense / dense.sum(axis=1, keepdims=True)


class _Fingers:
    """Bends the splayed fingers of the rest mesh towards the palm, closes their fan and lays the thumb beside it."""

    def __init__(self, labels: list[str], parents: list[int], rig) -> None:
        self._label = {label: i for i, label in enumerate(labels)}
        self._parents = [int(parent) for parent in parents]
        self._chain = [
            (side, finger, part, self._label[f"finger{finger}-{part}.{side}"])
            for side in "LR"
            for finger in range(1, 6)
            for part in range(1, 4)
        ]
        weights = _dense_weights(rig)[:, [bone for *_, bone in self._chain]]
        self._vertices = np.flatnonzero(weights.sum(axis=1) > 0)
        self._weights = weights[self._vertices]

    def relax(self, vertices: np.ndarray, heads: np.ndarray, curl: np.ndarray) -> np.ndarray:
        turns, places = {}, {}
        for side, finger, part, bone in self._chain:
            parent = self._parents[bone]
            local = self._local(heads, side, finger, part, curl)
            if parent in turns:
                turns[bone] = turns[parent] @ local
                places[bone] = places[parent] + turns[parent] @ (heads[bone] - heads[parent])
            else:
                turns[bone], places[bone] = local, heads[bone]
        bones = [bone for *_, bone in self._chain]
        turn = np.stack([turns[bone] for bone in bones])
        shift = np.stack([places[bone] for bone in bones]) - np.einsum("bij,bj->bi", turn, heads[bones])
        blend = np.concatenate([turn, shift[:, :, None]], axis=2).reshape(len(bones), 12)
        still = (1 - self._weights.sum(axis=1))[:, None]
        matrix = (self._weights @ blend).reshape(-1, 3, 4)
        at = vertices[self._vertices]
        out = vertices.copy()
        out[self._vertices] = still * at + np.einsum("vij,vj->vi", matrix[:, :, :3], at) + matrix[:, :, 3]
        return out

    def _local(self, heads: np.ndarray, side: str, finger: int, part: int, curl: np.ndarray) -> np.ndarray:
        def at(name: str) -> np.ndarray:
            return heads[self._label[f"{name}.{side}"]]

        palm, middle = at("finger3-1") - at("wrist"), at("finger3-3") - at("finger3-1")
        along = at(f"finger{finger}-3") - at(f"finger{finger}-1")
        if finger == 1 and part == 1:
            return rotation_about(np.cross(along, palm), 0.2 + 0.5 * curl[0])
        turn = rotation_about(np.cross(palm, middle), curl[part - 1] * (0.45 if finger == 1 else 1.0))
        if part > 1 or finger == 1:
            return turn
        towards = np.cross(along, middle)
        angle = np.arcsin(min(1.0, np.linalg.norm(towards) / (np.linalg.norm(along) * np.linalg.norm(middle))))
        return turn @ rotation_about(towards, 0.6 * angle)


def identity_bone(turns: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bones with one more that stays where it is, for things that are not the person."""
    return np.concatenate([turns, np.eye(3)[None]]), np.concatenate([shifts, np.zeros((1, 3))])


__all__ = ["AGES", "SKIN", "Body", "Shape", "axis_angle", "identity_bone", "random_phenotype", "strongest"]
