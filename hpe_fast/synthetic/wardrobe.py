"""Who wears what: MakeHuman's garments in new colours, or clothes painted on a body that is swollen where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpe_fast.synthetic import materials, paint
from hpe_fast.synthetic.body import AGES, Body, Shape, random_phenotype, strongest
from hpe_fast.synthetic.makehuman import TEXELS, Garment, read_texture
from hpe_fast.synthetic.materials import CLOTH, DRESSED, PICTURE, PLAIN, material
from hpe_fast.synthetic.parts import Part, vertex_normals
from hpe_fast.synthetic.splits import SPLITS, split_of

#: Folders of MakeHuman's assets and what is in them.
_KINDS = {"clothes": "outfit", "hair": "hair", "eyebrows": "brows"}
#: The texture of this one belongs to other coordinates.
_WITHOUT_TEXTURE = ("male_worksuit01",)
_MEN_ONLY_HAIR, _WOMEN_ONLY_HAIR = ("short02", "short04"), ("bob01", "braid01", "long01", "ponytail01")
#: Hair that a hat does not cover would come through the felt.
_UNDER_A_HAT = ("short04",)
#: Designs of painted clothes are numbers; a split has those that leave its number when divided by 8 (train the rest).
_DESIGNS, _DESIGN_CLASSES = 1 << 30, 8
#: MakeHuman's outfits, clothes painted on the body, and what is worn for sports and bathing (painted, tight, short).
_STYLES = ("outfit", "street", "sports")
_STYLE_SHARES, _STYLE_SHARES_IN_PAINT = (0.55, 0.27, 0.18), (0.0, 0.8, 0.2)
_NO_HAIRLINE = paint.no_clothes()["hairline"]
_SKIRT_SHARE, _SKIRT_RINGS, _SKIRT_AROUND = 0.3, 10, 36
_GLOSS = {"skin": 0.05, "shoes": 0.06, "hair": 0.05}
_BARE, _TOP, _TROUSERS, _SHOES, _HAIR = range(5)


@dataclass(frozen=True)
class Person:
    """A body that appears in several pictures."""

    shape: Shape
    normal: np.ndarray
    female: bool
    age: str
    skin: str


class Wardrobe:
    """Everything to wear of one split. Skins, hair and eyebrows serve all splits, clothes and shoes one.

    Args:
        folder: where MakeHuman's ``clothes``, ``hair``, ``eyebrows`` and ``skins`` are, at any depth; ``None``: paint.
        body: what they are bound to.
        split: train, valid or test.

    Attributes:
        textures: uint8 [T, TEXELS, TEXELS, 4], RGBA.

    Raises:
        ValueError: naming a file that cannot be used, or if there is none.
    """

    def __init__(self, folder: Path | None, body: Body, split: str) -> None:
        self._body, self._split = body, split
        self._pictures: list[np.ndarray] = []
        self._worn: dict[str, dict[str, Garment]] = {"outfit": {}, "shoes": {}, "hair": {}, "brows": {}, "hat": {}}
        self._skins: dict[str, int] = {}
        if folder is not None:
            self._load(folder)
        self.textures = np.stack(self._pictures or [np.full((TEXELS, TEXELS, 4), 255, np.uint8)])
        self._used, faces = np.unique(body.faces, return_inverse=True)
        self._faces = faces.reshape(-1, 3).astype(np.int32)

    @property
    def clothes(self) -> set[str]:
        """Names of this split's outfits and shoes."""
        return set(self._worn["outfit"]) | set(self._worn["shoes"])

    def person(self, rng: np.random.Generator) -> Person:
        """Somebody at random."""
        female = bool(rng.random() < 0.5)
        age = str(rng.choice(list(AGES), p=[0.6, 0.27, 0.13]))
        fitting = [
            name for name in self._skins if name.startswith(age) and f"_{'female' if female else 'male'}_" in name
        ]
        skin = fitting[rng.integers(len(fitting))] if fitting else ""
        shape = self._body.shape(random_phenotype(rng, female, age), rng.uniform([0.15, 0.1, 0.05], [0.75, 0.7, 0.4]))
        at = shape.vertices[self._used].astype(np.float32)
        return Person(shape, vertex_normals(at, self._faces), female, age, skin)

    def dress(self, rng: np.random.Generator, person: Person) -> tuple[list[Part], dict[str, str]]:
        """The clothed person as parts, the body first, and the names of what is worn."""
        outfits = self._outfits(person.female)
        style = str(rng.choice(_STYLES, p=_STYLE_SHARES if outfits else _STYLE_SHARES_IN_PAINT))
        design = self._design(rng)
        mine = np.random.default_rng(design)
        limits = self._limits(mine, style, person.female)
        names = {"design": str(design), "skin": person.skin, "style": style}
        worn: dict[str, Garment] = {}
        if style == "outfit":
            worn["outfit"] = outfits[rng.integers(len(outfits))]
        for kind, garment in self._extras(rng, person.female).items():
            barefoot = kind == "shoes" and (style == "sports" or (style == "street" and rng.random() < 0.1))
            capped = kind in ("hair", "hat") and limits["hairline"] < _NO_HAIRLINE
            if garment is not None and not (barefoot or capped):
                worn[kind] = garment
        names |= {kind: garment.name for kind, garment in worn.items()}
        colour = materials.hair_colour(rng)
        body = self._bare(rng, mine, person, worn, colour, style, limits)
        parts = [body, *(self._part(mine, kind, worn[kind], person, colour) for kind in worn)]
        if style == "street" and person.female and mine.random() < _SKIRT_SHARE:
            parts.append(self._skirt(mine, person, body))
            names["skirt"] = "yes"
        return parts, names

    def _limits(self, design: np.random.Generator, style: str, female: bool) -> dict[str, float]:
        """Where painted clothes end, and painted hair where there is no other."""
        limits = paint.no_clothes()
        if style != "outfit":
            limits |= paint.sportswear(design, female) if style == "sports" else paint.cuts(design, female)
        if not self._worn["hair"] and limits["hairline"] == _NO_HAIRLINE and design.random() < 0.95:
            limits["hairline"] = design.uniform(0.0, 0.08)
        return limits

    def _design(self, rng: np.random.Generator) -> int:
        number = int(rng.integers(_DESIGNS // _DESIGN_CLASSES)) * _DESIGN_CLASSES
        valid, test = SPLITS.index("valid"), SPLITS.index("test")
        if self._split == "train":
            others = [k for k in range(_DESIGN_CLASSES) if k not in (valid, test)]
            return number + others[rng.integers(len(others))]
        return number + SPLITS.index(self._split)

    def _outfits(self, female: bool) -> list[Garment]:
        """Clothes of the sex; women wear most of men's too."""
        return [
            garment
            for name, garment in sorted(self._worn["outfit"].items())
            if name.startswith("female" if female else "male") or (female and "elegant" not in name)
        ]

    def _extras(self, rng: np.random.Generator, female: bool) -> dict[str, Garment | None]:
        def pick(kind: str, names: list[str] | None = None) -> Garment | None:
            mine = self._worn[kind]
            names = sorted(mine) if names is None else names
            return mine[names[rng.integers(len(names))]] if names else None

        other = _MEN_ONLY_HAIR if female else _WOMEN_ONLY_HAIR
        hair = pick("hair", [name for name in sorted(self._worn["hair"]) if name not in other])
        hat = pick("hat") if rng.random() < 0.06 else None
        bald = rng.random() < (0.01 if female else 0.07)
        if hair is not None and (bald or (hat is not None and hair.name not in _UNDER_A_HAT)):
            hair = None
        return {"shoes": pick("shoes"), "hair": hair, "brows": pick("brows"), "hat": hat}

    def _bare(
        self,
        rng: np.random.Generator,
        design: np.random.Generator,
        person: Person,
        worn: dict[str, Garment],
        hair: np.ndarray,
        style: str,
        limits: dict[str, float],
    ) -> Part:
        """The body, without what clothes cover, with painted clothes where there are no others."""
        place = self._body.place[self._used]
        if "shoes" in worn:
            limits = limits | {"shoe": -9.0}
        swell = paint.swell(place, limits, style == "sports", design)
        capped = style == "sports" and bool(self._worn["hair"])
        rows = [
            self._skin_material(rng, person, limits),
            *(
                material(PLAIN, **materials.cloth_fields(design) | {"folds": design.uniform(0.04, 0.16)})
                for _ in range(2)
            ),
            material(PLAIN, colour=materials.cloth_colour(design), gloss=_GLOSS["shoes"]),
            material(PLAIN, **materials.cloth_fields(design))
            if capped
            else material(
                PLAIN, colour=hair, second=hair * 0.6, pattern=4, period=0.01, duty=0.5, axis=np.ones(3), gloss=0.04
            ),
        ]
        keep = np.ones(len(self._faces), bool)
        if worn:
            hidden = np.zeros(len(self._body.weights), bool)
            hidden[np.concatenate([garment.hidden for garment in worn.values()])] = True
            keep = ~hidden[self._body.faces].all(axis=1)
        return Part(
            rest=person.shape.vertices[self._used].astype(np.float32),
            normal=person.normal,
            swell=swell,
            place=place,
            bone=self._body.bone_index[self._used],
            weight=self._body.bone_weight[self._used],
            faces=self._faces[keep],
            uv=self._body.uv[keep],
            kind=np.zeros(int(keep.sum()), np.int32),
            materials=np.stack(rows),
        )

    def _skirt(self, rng: np.random.Generator, person: Person, body: Part) -> Part:
        """A tube round hips and legs that hangs on both; of the top's cloth it is a dress."""
        at, trunk, arm = body.rest, body.place[:, 0], body.place[:, 1]
        top, hem, flare = rng.uniform(0.1, 0.25), rng.uniform(-0.7, -0.2), rng.uniform(0.02, 0.12)
        angle = np.linspace(0, 2 * np.pi, _SKIRT_AROUND, endpoint=False)
        out = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        rings, middle = [], np.median(at[(np.abs(trunk) < 0.1) & (arm < 0.05)], axis=0)[:2]
        reach = np.zeros(_SKIRT_AROUND)
        for level in np.linspace(top, hem, _SKIRT_RINGS):
            near = at[(np.abs(trunk - level) < 0.06) & (arm < 0.05)]
            hull = ((near[:, :2] - middle) @ out.T).max(axis=0) + 0.012
            reach = hull if level > 0.05 else np.maximum(reach, hull)
            wide = reach + flare * max(0.0, -level)
            rings.append(np.column_stack([middle + out * wide[:, None], np.full(len(out), np.median(near[:, 2]))]))
        vertices = np.concatenate(rings).astype(np.float32)
        index = np.arange(len(vertices), dtype=np.int32).reshape(_SKIRT_RINGS, _SKIRT_AROUND)
        a, b = index[:-1], index[1:]
        c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
        faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
        down = np.clip(np.repeat(np.linspace(top, hem, _SKIRT_RINGS), _SKIRT_AROUND) / -0.2, 0, 1)
        left = np.clip(vertices[:, 0] / 0.16 + 0.5, 0, 1)
        weights = np.zeros((len(vertices), len(self._body.bones)), np.float32)
        for bone, share in (("Hips", 1 - down), ("LeftUpLeg", down * left), ("RightUpLeg", down * (1 - left))):
            weights[:, self._body.bones.index(bone)] = share
        bone, weight = strongest(weights)
        fields = materials.cloth_fields(rng) | {"folds": rng.uniform(0.05, 0.2)}
        return Part(
            rest=vertices,
            normal=vertex_normals(vertices, faces),
            swell=np.full(len(vertices), 0.004, np.float32),
            place=np.tile(np.array([0.5, 9.0, -9.0], np.float32), (len(vertices), 1)),
            bone=bone,
            weight=weight,
            faces=faces,
            uv=np.zeros((len(faces), 3, 2), np.float32),
            kind=np.zeros(len(faces), np.int32),
            materials=body.materials[_TOP : _TOP + 1] if rng.random() < 0.5 else material(PLAIN, **fields)[None],
        )

    def _skin_material(self, rng: np.random.Generator, person: Person, limits: dict[str, float]) -> np.ndarray:
        tone = rng.uniform(0.7, 1.15) * (1 + rng.normal(0, 0.03, 3))
        if person.skin:
            return material(DRESSED, slot=self._skins[person.skin], colour=tone, gloss=_GLOSS["skin"], **limits)
        return material(DRESSED, colour=materials.skin_colour(rng), gloss=_GLOSS["skin"], **limits)

    def _part(self, rng: np.random.Generator, kind: str, garment: Garment, person: Person, hair: np.ndarray) -> Part:
        at, normal = garment.fit(person.shape)
        if kind in ("hair", "brows"):
            looks = {"colour": hair, "median": garment.median, "detail": 0.45, "keep": 0.05, "gloss": _GLOSS["hair"]}
            rows = [material(CLOTH, slot=garment.slot, cutout=1.0, **looks)]
            piece = np.zeros(len(garment.faces), np.int32)
        else:
            rows, piece = [_garment_material(rng, garment) for _ in range(garment.pieces)], garment.piece
        return Part(
            rest=at,
            normal=normal,
            swell=np.full(len(at), 0.003 if kind == "outfit" else 0.0, np.float32),
            place=np.tile(np.array([0.5, 9.0, -9.0], np.float32), (len(at), 1)),
            bone=garment.bone,
            weight=garment.weight,
            faces=garment.faces,
            uv=garment.uv,
            kind=piece,
            materials=np.stack(rows),
        )

    def _load(self, folder: Path) -> None:
        found: dict[str, dict[str, Path]] = {kind: {} for kind in self._worn}
        for path in sorted(folder.rglob("*.mhclo")):
            kind = next((_KINDS[part] for part in path.relative_to(folder).parts[::-1] if part in _KINDS), "")
            kind = "shoes" if "shoe" in path.stem else "hat" if "fedora" in path.stem else kind
            if kind:
                found[kind][path.stem] = path
        if not found["outfit"]:
            raise ValueError(f"--assets {folder}: no clothes/*/*.mhclo below it (MakeHuman's CC0 assets)")
        for kind in ("outfit", "shoes"):
            side = split_of(found[kind])
            found[kind] = {name: path for name, path in found[kind].items() if side[name] == self._split}
        for kind, paths in found.items():
            for name, path in paths.items():
                self._worn[kind][name] = self._garment(path, kind)
        for path in sorted(folder.rglob("*skinned*diffuse*.png")):
            self._skins[path.name] = self._keep(read_texture(path))

    def _garment(self, path: Path, kind: str) -> Garment:
        pictures = sorted(path.parent.glob("*diffuse.png")) or sorted(path.parent.rglob("*.png"))
        slot, median = -1, 1.0
        if pictures and path.stem not in _WITHOUT_TEXTURE:
            texture = read_texture(pictures[0])
            linear = (texture[..., :3].astype(np.float32) / 255) ** 2
            solid = texture[..., 3] > 127 if kind in ("hair", "brows") else np.ones(texture.shape[:2], bool)
            median = float(np.median((linear @ np.array([0.3, 0.55, 0.15], np.float32))[solid])) + 0.005
            if kind not in ("hair", "brows"):
                texture[..., 3] = 255
            slot = self._keep(texture)
        return Garment(path, self._body, slot, median)

    def _keep(self, texture: np.ndarray) -> int:
        self._pictures.append(texture)
        return len(self._pictures) - 1


def _garment_material(rng: np.random.Generator, garment: Garment) -> np.ndarray:
    if garment.slot < 0:
        return material(PLAIN, **materials.cloth_fields(rng) | {"folds": rng.uniform(0.05, 0.18)})
    if rng.random() < 0.12:  # as it was made, a little lighter or darker
        return material(PICTURE, slot=garment.slot, colour=np.full(3, rng.uniform(0.75, 1.25)), gloss=0.02)
    fields = materials.cloth_fields(rng)
    extra = {"detail": rng.uniform(0.4, 0.9), "median": garment.median, "keep": rng.uniform(0, 0.3)}
    return material(CLOTH, slot=garment.slot, folds=rng.uniform(0.0, 0.1), **fields, **extra)


__all__ = ["Person", "Wardrobe"]
