"""The renderer's kernels, in NVIDIA Warp: compiled for the CPU or a CUDA device from this one source.

A picture is rasterised, not ray traced: triangles go into a depth buffer with 2x2 samples a pixel, the visible samples
are shaded once, and shadows come from a second depth buffer seen from the sun. Light from all around is nine spherical
harmonics of the panorama times the part of the sky that the body's own spheres leave open.

Depth buffers hold ``nearness << 32 | triangle`` and are combined with ``max``: the result does not depend on the order.
Everything is in metres, z up; radiance is linear RGB. ``n.`` in a shape comment is one number for each of n.
"""

# No postponed annotations here: Warp reads them. Its variables that change begin as `float(0.0)`, not as a constant.
# ruff: noqa: UP018, RUF046, SIM108

from typing import Any

try:
    import warp as wp
except ModuleNotFoundError:  # the extra `synthetic` is not installed: the module can be imported, nothing in it runs
    from hpe_fast.synthetic.extra import Absent

    wp: Any = Absent()

wp.set_module_options({"enable_backward": False})

#: Nearness 1 in a depth buffer's key.
NEARNESS = wp.constant(268435456.0)

# Columns of a row of `material`; see hpe_fast.synthetic.materials.
SLOT = wp.constant(0)
MODE = wp.constant(1)
COLOUR = wp.constant(2)
SECOND = wp.constant(5)
PATTERN = wp.constant(8)
PERIOD = wp.constant(9)
DUTY = wp.constant(10)
PHASE = wp.constant(11)
AXIS = wp.constant(12)
GLOSS = wp.constant(15)
DETAIL = wp.constant(16)
MEDIAN = wp.constant(17)
KEEP = wp.constant(18)
CUTOUT = wp.constant(19)
FOLDS = wp.constant(20)
SLEEVE = wp.constant(21)
WAIST = wp.constant(22)
NECK = wp.constant(23)
TROUSERS = wp.constant(24)
SHOE = wp.constant(25)
HAIRLINE = wp.constant(26)
HEM = wp.constant(27)

MODE_PICTURE = wp.constant(0)
MODE_CLOTH = wp.constant(1)
MODE_PLAIN = wp.constant(2)
MODE_DRESSED = wp.constant(3)


@wp.kernel
def pose_vertices(
    rest: wp.array(dtype=wp.vec3),
    rest_normal: wp.array(dtype=wp.vec3),
    swell: wp.array(dtype=float),
    bone: wp.array2d(dtype=int),
    weight: wp.array2d(dtype=float),
    turn: wp.array(dtype=wp.mat33),
    shift: wp.array(dtype=wp.vec3),
    position: wp.array(dtype=wp.vec3),
    normal: wp.array(dtype=wp.vec3),
):
    """Linear blend skinning of each vertex, which was moved along its normal by ``swell`` before."""
    i = wp.tid()
    rotation = wp.mat33()
    offset = wp.vec3()
    for k in range(bone.shape[1]):
        w = weight[i, k]
        if w > 0.0:
            rotation = rotation + turn[bone[i, k]] * w
            offset = offset + shift[bone[i, k]] * w
    position[i] = rotation * (rest[i] + rest_normal[i] * swell[i]) + offset
    normal[i] = wp.normalize(rotation * rest_normal[i])


@wp.kernel
def ambient(
    position: wp.array(dtype=wp.vec3),
    normal: wp.array(dtype=wp.vec3),
    balls: wp.array(dtype=wp.vec4),
    floor: float,
    sky: wp.array(dtype=float),
):
    """How much of the sky each vertex sees past the spheres ``balls`` and what the floor throws back."""
    i = wp.tid()
    p = position[i]
    n = normal[i]
    sky[i] = open_sky(p, n, balls) * floor_dark(p, n, floor)


@wp.func
def floor_dark(p: wp.vec3, n: wp.vec3, floor: float):
    """Downward faces near the floor see mostly a floor that the body itself darkens."""
    near = wp.exp(-(p[2] - floor) * 4.0)
    return 1.0 - 0.35 * near * wp.clamp(0.5 - 0.5 * n[2], 0.0, 1.0)


@wp.func
def open_sky(p: wp.vec3, n: wp.vec3, balls: wp.array(dtype=wp.vec4)):
    """Share of the cosine-weighted hemisphere about ``n`` that spheres (x, y, z, radius) leave open."""
    share = float(1.0)
    for k in range(balls.shape[0]):
        b = balls[k]
        d = wp.vec3(b[0], b[1], b[2]) - p
        r2 = b[3] * b[3]
        d2 = wp.max(wp.dot(d, d), r2)
        c = wp.dot(n, d) / wp.sqrt(d2)
        if c > 0.0 and d2 < 60.0 * r2:
            share = share * (1.0 - 0.85 * c * r2 / d2)
    return share


@wp.kernel
def project(
    position: wp.array(dtype=wp.vec3),
    eye: wp.vec3,
    axes: wp.mat33,
    lens: wp.vec4,
    samples: float,
    screen: wp.array(dtype=wp.vec3),
):
    """Vertices in the samples' grid (x, y, 1 / depth; 0: behind); ``axes`` has the camera's axes as columns."""
    i = wp.tid()
    c = wp.transpose(axes) * (position[i] - eye)
    if c[2] > 0.15:
        x = c[0] / c[2] * lens[0] + lens[2]
        y = c[1] / c[2] * lens[1] + lens[3]
        screen[i] = wp.vec3((x + 0.5) * samples - 0.5, (y + 0.5) * samples - 0.5, 1.0 / c[2])
    else:
        screen[i] = wp.vec3(0.0, 0.0, 0.0)


@wp.kernel
def project_sun(
    position: wp.array(dtype=wp.vec3),
    centre: wp.vec3,
    right: wp.vec3,
    up: wp.vec3,
    sun: wp.vec3,
    scale: float,
    half: float,
    screen: wp.array(dtype=wp.vec3),
):
    """Vertices in the shadow map: parallel to the sun, nearness 1 at ``centre``, more towards the sun."""
    i = wp.tid()
    d = position[i] - centre
    screen[i] = wp.vec3(wp.dot(d, right) * scale + half, wp.dot(d, up) * scale + half, sun_nearness(wp.dot(d, sun)))


@wp.func
def sun_nearness(along: float):
    return wp.clamp(1.0 + along * 0.1, 0.01, 4.0)


@wp.func
def cross2(a: wp.vec3, b: wp.vec3, x: float, y: float):
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


@wp.func
def texel(texture: wp.array4d(dtype=wp.uint8), slot: int, u: float, v: float):
    """Bilinear, wrapping; RGB comes out linear (a gamma of 2 is near enough), A as it is."""
    n = texture.shape[1]
    x = (u - wp.floor(u)) * float(n) - 0.5
    y = (wp.ceil(v) - v) * float(n) - 0.5
    x0 = int(wp.floor(x))
    y0 = int(wp.floor(y))
    fx = x - float(x0)
    fy = y - float(y0)
    xa = wp.clamp(x0, 0, n - 1)
    xb = wp.clamp(x0 + 1, 0, n - 1)
    ya = wp.clamp(y0, 0, n - 1)
    yb = wp.clamp(y0 + 1, 0, n - 1)
    c = rgba(texture, slot, ya, xa) * ((1.0 - fx) * (1.0 - fy)) + rgba(texture, slot, ya, xb) * (fx * (1.0 - fy))
    c = c + rgba(texture, slot, yb, xa) * ((1.0 - fx) * fy) + rgba(texture, slot, yb, xb) * (fx * fy)
    return wp.vec4(c[0] * c[0], c[1] * c[1], c[2] * c[2], c[3])


@wp.func
def rgba(texture: wp.array4d(dtype=wp.uint8), slot: int, y: int, x: int):
    s = 1.0 / 255.0
    return wp.vec4(
        float(texture[slot, y, x, 0]) * s,
        float(texture[slot, y, x, 1]) * s,
        float(texture[slot, y, x, 2]) * s,
        float(texture[slot, y, x, 3]) * s,
    )


@wp.kernel
def rasterise(
    screen: wp.array(dtype=wp.vec3),
    triangle: wp.array2d(dtype=int),
    uv: wp.array2d(dtype=wp.vec2),
    kind: wp.array(dtype=int),
    material: wp.array2d(dtype=float),
    texture: wp.array4d(dtype=wp.uint8),
    buffer: wp.array2d(dtype=wp.int64),
):
    """Each triangle into a depth buffer [H,W] of ``nearness << 32 | triangle``, 0 where there is none."""
    f = wp.tid()
    a = screen[triangle[f, 0]]
    b = screen[triangle[f, 1]]
    c = screen[triangle[f, 2]]
    area = cross2(a, b, c[0], c[1])
    if a[2] > 0.0 and b[2] > 0.0 and c[2] > 0.0 and area != 0.0:
        x0 = wp.max(int(wp.ceil(wp.min(wp.min(a[0], b[0]), c[0]))), 0)
        x1 = wp.min(int(wp.floor(wp.max(wp.max(a[0], b[0]), c[0]))), buffer.shape[1] - 1)
        y0 = wp.max(int(wp.ceil(wp.min(wp.min(a[1], b[1]), c[1]))), 0)
        y1 = wp.min(int(wp.floor(wp.max(wp.max(a[1], b[1]), c[1]))), buffer.shape[0] - 1)
        scale = 1.0 / area
        k = kind[f]
        cutout = material[k, CUTOUT]
        slot = int(material[k, SLOT])
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                wa = cross2(b, c, float(x), float(y)) * scale
                wb = cross2(c, a, float(x), float(y)) * scale
                wc = 1.0 - wa - wb
                if wa >= 0.0 and wb >= 0.0 and wc >= 0.0:
                    near = wa * a[2] + wb * b[2] + wc * c[2]
                    key = (wp.int64(near * NEARNESS) << wp.int64(32)) | wp.int64(f)
                    if key > buffer[y, x]:
                        solid = float(1.0)
                        if cutout > 0.0:
                            t = uv[f, 0] * (wa * a[2]) + uv[f, 1] * (wb * b[2]) + uv[f, 2] * (wc * c[2])
                            colour = texel(texture, slot, t[0] / near, t[1] / near)
                            solid = colour[3]
                        if solid > 0.5 * cutout:
                            wp.atomic_max(buffer, y, x, key)


@wp.func
def wave(x: float, duty: float):
    """1 in the first ``duty`` of every period of 1, with soft edges."""
    t = x - wp.floor(x)
    return wp.clamp((duty - t) * 12.0 + 0.5, 0.0, 1.0) * wp.clamp(t * 12.0 + 0.5, 0.0, 1.0) + wp.clamp(
        (t - 1.0) * 12.0 + 0.5, 0.0, 1.0
    )


@wp.func
def ripple(p: wp.vec3, d: wp.vec3, frequency: float):
    """A smooth random field in about [-1, 1] whose seed is ``d``."""
    s = wp.sin(wp.dot(p, wp.vec3(d[0], d[1], d[2])) * frequency + d[0] * 17.0)
    s = s + wp.sin(wp.dot(p, wp.vec3(-d[1], d[2] + 0.3, d[0])) * frequency * 1.31 + d[1] * 23.0 + s)
    s = s + wp.sin(wp.dot(p, wp.vec3(d[2], -d[0] + 0.2, d[1] + 0.5)) * frequency * 1.73 + d[2] * 29.0 + s)
    s = s + wp.sin(wp.dot(p, wp.vec3(0.7 - d[0], d[2], -d[1])) * frequency * 2.37 + s * 1.3)
    return s * 0.4


@wp.func
def pattern(material: wp.array2d(dtype=float), k: int, p: wp.vec3):
    """How much of the second colour there is at a point of the cloth at rest: 0 to 1."""
    kind = int(material[k, PATTERN])
    period = material[k, PERIOD]
    duty = material[k, DUTY]
    phase = material[k, PHASE]
    axis = wp.vec3(material[k, AXIS], material[k, AXIS + 1], material[k, AXIS + 2])
    along = p[0] + 0.6 * p[1]
    m = float(0.0)
    if kind == 1:
        m = wave(wp.dot(p, axis) / period + phase, duty)
    elif kind == 2:
        m = 0.5 * wave(p[2] / period + phase, duty) + 0.5 * wave(along / period + phase, duty)
    elif kind == 3:
        u = p[2] / period + phase
        v = along / period
        u = u - wp.floor(u) - 0.5
        v = v - wp.floor(v) - 0.5
        m = wp.clamp((duty * 0.35 - u * u - v * v) * 20.0 + 0.5, 0.0, 1.0)
    elif kind == 4:
        m = wp.clamp(ripple(p, axis, 1.6 / period) * 2.5 + duty, 0.0, 1.0)
    elif kind == 5:
        m = wp.clamp((period * 2.5 - wp.abs(p[2] - phase * 1.6 + 0.9)) * 60.0 + 0.5, 0.0, 1.0)
    elif kind == 6:
        g = wp.dot(p, axis) / period
        row = wp.floor(g)
        m = 0.5 + 0.35 * ripple(p + axis * (row * 7.3), wp.vec3(0.9, 0.4, 0.2), 9.0)
        m = m + 0.35 * wp.sin(row * 12.9898 + phase * 6.0)
        m = wp.max(m, wave(g, 0.06))
    elif kind == 7:
        gx = wave(p[0] / period + phase, 0.06)
        gy = wave(p[1] / period + phase, 0.06)
        gz = wave(p[2] / period + phase, 0.06)
        m = wp.max(wp.max(gx * (1.0 - wp.abs(axis[0])), gy * (1.0 - wp.abs(axis[1]))), gz * (1.0 - wp.abs(axis[2])))
        m = wp.clamp(m + 0.12 * ripple(p, wp.vec3(0.3, 0.8, 0.5), 14.0), 0.0, 1.0)
    return wp.clamp(m, 0.0, 1.0)


@wp.func
def cloth(material: wp.array2d(dtype=float), k: int, p: wp.vec3):
    """Colour of a material without its texture."""
    m = pattern(material, k, p)
    first = wp.vec3(material[k, COLOUR], material[k, COLOUR + 1], material[k, COLOUR + 2])
    second = wp.vec3(material[k, SECOND], material[k, SECOND + 1], material[k, SECOND + 2])
    return first * (1.0 - m) + second * m


@wp.func
def worn(material: wp.array2d(dtype=float), k: int, place: wp.vec3):
    """Which painted garment covers a place of the body: 0 none, 1 top, 2 trousers, 3 shoes, 4 hair."""
    trunk = place[0]
    arm = place[1]
    scalp = place[2]
    which = int(0)
    if scalp > material[k, HAIRLINE]:
        which = 4
    elif trunk < material[k, SHOE]:
        which = 3
    elif trunk < material[k, WAIST] and trunk > material[k, TROUSERS] and arm < 0.05:
        which = 2
    elif (
        trunk >= wp.max(material[k, WAIST], material[k, HEM])
        and trunk < material[k, NECK]
        and arm < material[k, SLEEVE]
    ):
        which = 1
    return which


@wp.func
def albedo(
    material: wp.array2d(dtype=float),
    texture: wp.array4d(dtype=wp.uint8),
    k: int,
    uv: wp.vec2,
    p: wp.vec3,
    place: wp.vec3,
):
    """Colour of a surface, and in the fourth number the row of `material` that it came from."""
    mode = int(material[k, MODE])
    m = k
    if mode == MODE_DRESSED:
        garment = worn(material, k, place)
        m = k + garment
        if garment > 0:
            mode = MODE_PLAIN
        else:
            mode = MODE_PICTURE
    colour = wp.vec3(material[m, COLOUR], material[m, COLOUR + 1], material[m, COLOUR + 2])
    slot = int(material[m, SLOT])
    if mode == MODE_PICTURE and slot >= 0:
        t = texel(texture, slot, uv[0], uv[1])
        colour = wp.cw_mul(colour, wp.vec3(t[0], t[1], t[2]))
    elif mode == MODE_CLOTH:
        colour = cloth(material, m, p)
        t = texel(texture, slot, uv[0], uv[1])
        light = t[0] * 0.3 + t[1] * 0.55 + t[2] * 0.15
        detail = wp.pow(wp.clamp(light / material[m, MEDIAN], 0.2, 2.2), material[m, DETAIL])
        keep = material[m, KEEP]
        tint = wp.vec3(t[0], t[1], t[2]) / (light + 0.01)
        tint = wp.vec3(wp.clamp(tint[0], 0.3, 2.0), wp.clamp(tint[1], 0.3, 2.0), wp.clamp(tint[2], 0.3, 2.0))
        colour = wp.cw_mul(colour, wp.vec3(1.0, 1.0, 1.0) * (1.0 - keep) + tint * keep) * detail
    elif mode == MODE_PLAIN:
        colour = cloth(material, m, p)
    top = wp.max(wp.max(colour[0], colour[1]), colour[2])
    if top > 0.92:
        colour = colour * (0.92 / top)
    return wp.vec4(colour[0], colour[1], colour[2], float(m))


@wp.func
def irradiance(sh: wp.array(dtype=wp.vec3), n: wp.vec3):
    """Irradiance / pi for a normal, from nine coefficients."""
    e = sh[0] * 0.282095 + sh[1] * (0.488603 * n[1]) + sh[2] * (0.488603 * n[2]) + sh[3] * (0.488603 * n[0])
    e = e + sh[4] * (1.092548 * n[0] * n[1]) + sh[5] * (1.092548 * n[1] * n[2])
    e = e + sh[6] * (0.315392 * (3.0 * n[2] * n[2] - 1.0))
    e = e + sh[7] * (1.092548 * n[0] * n[2]) + sh[8] * (0.546274 * (n[0] * n[0] - n[1] * n[1]))
    return wp.max(e, wp.vec3(0.02, 0.02, 0.02))


@wp.func
def lit(
    shadow: wp.array2d(dtype=wp.int64),
    p: wp.vec3,
    centre: wp.vec3,
    right: wp.vec3,
    up: wp.vec3,
    sun: wp.vec3,
    scale: float,
    spread: float,
    bias: float,
    taps: int,
    state: wp.uint32,
):
    """Share of the sun's disc seen from ``p``: taps into the shadow map, wider the farther what casts the shadow is."""
    half = float(shadow.shape[0]) * 0.5
    d = p - centre
    x = wp.dot(d, right) * scale + half
    y = wp.dot(d, up) * scale + half
    z = sun_nearness(wp.dot(d, sun) + bias)
    share = float(1.0)
    if x > 1.0 and y > 1.0 and x < 2.0 * half - 2.0 and y < 2.0 * half - 2.0:
        turn = wp.randf(state) * 6.2831853
        distance = float(0.0)
        found = float(0.0)
        reach = spread * scale * 0.6
        for k in range(4):
            r = reach * wp.sqrt((float(k) + 0.5) * 0.25)
            near = nearness_at(shadow, x + r * wp.cos(turn), y + r * wp.sin(turn))
            turn = turn + 2.3999632
            if near > z:
                distance = distance + (near - z) * 10.0
                found = found + 1.0
        near = nearness_at(shadow, x, y)
        if near > z:
            distance = distance + (near - z) * 10.0
            found = found + 1.0
        if found > 0.0:
            radius = wp.max(distance / found * spread * scale, 1.2)
            share = float(0.0)
            for k in range(taps):
                r = radius * wp.sqrt((float(k) + 0.5) / float(taps))
                if nearness_at(shadow, x + r * wp.cos(turn), y + r * wp.sin(turn)) <= z:
                    share = share + 1.0 / float(taps)
                turn = turn + 2.3999632
    return share


@wp.func
def nearness_at(shadow: wp.array2d(dtype=wp.int64), x: float, y: float):
    n = shadow.shape[0] - 1
    key = shadow[wp.clamp(int(y + 0.5), 0, n), wp.clamp(int(x + 0.5), 0, n)]
    return float(key >> wp.int64(32)) / NEARNESS


@wp.kernel
def shade(
    buffer: wp.array2d(dtype=wp.int64),
    shadow: wp.array2d(dtype=wp.int64),
    screen: wp.array(dtype=wp.vec3),
    position: wp.array(dtype=wp.vec3),
    normal: wp.array(dtype=wp.vec3),
    sky: wp.array(dtype=float),
    rest: wp.array(dtype=wp.vec3),
    place: wp.array(dtype=wp.vec3),
    triangle: wp.array2d(dtype=int),
    uv: wp.array2d(dtype=wp.vec2),
    kind: wp.array(dtype=int),
    material: wp.array2d(dtype=float),
    texture: wp.array4d(dtype=wp.uint8),
    sh: wp.array(dtype=wp.vec3),
    eye: wp.vec3,
    centre: wp.vec3,
    right: wp.vec3,
    up: wp.vec3,
    sun: wp.vec3,
    sun_light: wp.vec3,
    scale: float,
    spread: float,
    samples: int,
    seed: int,
    front: wp.array2d(dtype=wp.vec3),
    cover: wp.array2d(dtype=float),
):
    """Radiance of what is in the depth buffer, summed over a pixel's samples, and the share of them that hit."""
    i, j = wp.tid()
    total = wp.vec3(0.0, 0.0, 0.0)
    hits = float(0.0)
    for s in range(samples * samples):
        x = j * samples + s % samples
        y = i * samples + s / samples
        key = buffer[y, x]
        if key > wp.int64(0):
            f = int(key & wp.int64(0xFFFFFFFF))
            ia = triangle[f, 0]
            ib = triangle[f, 1]
            ic = triangle[f, 2]
            a = screen[ia]
            b = screen[ib]
            c = screen[ic]
            inverse = 1.0 / cross2(a, b, c[0], c[1])
            wa = cross2(b, c, float(x), float(y)) * inverse
            wb = cross2(c, a, float(x), float(y)) * inverse
            wc = (1.0 - wa - wb) * c[2]
            wa = wa * a[2]
            wb = wb * b[2]
            whole = 1.0 / (wa + wb + wc)
            wa = wa * whole
            wb = wb * whole
            wc = wc * whole
            p = position[ia] * wa + position[ib] * wb + position[ic] * wc
            n = wp.normalize(normal[ia] * wa + normal[ib] * wb + normal[ic] * wc)
            q = rest[ia] * wa + rest[ib] * wb + rest[ic] * wc
            t = uv[f, 0] * wa + uv[f, 1] * wb + uv[f, 2] * wc
            where = place[ia] * wa + place[ib] * wb + place[ic] * wc
            surface = albedo(material, texture, kind[f], t, q, where)
            view = wp.normalize(eye - p)
            if wp.dot(n, view) < 0.0:
                n = -n
            m = int(surface[3])
            gloss = material[m, GLOSS]
            folds = material[m, FOLDS]
            if folds > 0.0:
                n = wp.normalize(n + wrinkles(q) * folds)
            open = sky[ia] * wa + sky[ib] * wb + sky[ic] * wc
            around = irradiance(sh, n) * open
            facing = wp.max(wp.dot(n, sun), 0.0)
            seen = float(0.0)
            if facing > 0.0 and sun_light[0] > 0.02:
                state = wp.rand_init(seed, y * buffer.shape[1] + x)
                seen = lit(shadow, p + n * 0.006, centre, right, up, sun, scale, spread, 0.014, 6, state)
            light = around + sun_light * (facing * seen)
            h = wp.normalize(sun + view)
            shine = gloss * wp.pow(wp.max(wp.dot(n, h), 0.0), 24.0) * seen
            rim = gloss * wp.pow(1.0 - wp.abs(wp.dot(n, view)), 4.0)
            colour = wp.vec3(surface[0], surface[1], surface[2])
            total = total + wp.cw_mul(colour, light) + sun_light * shine + around * rim
            hits = hits + 1.0
    count = float(samples * samples)
    front[i, j] = total / count
    cover[i, j] = hits / count


@wp.func
def wrinkles(p: wp.vec3):
    """A bumpy direction field of cloth."""
    x = wp.sin(p[2] * 41.0 + 3.0 * wp.sin(p[0] * 19.0 + p[1] * 11.0)) + 0.6 * wp.sin(p[2] * 83.0 + p[0] * 57.0)
    z = wp.sin(p[2] * 53.0 + 2.5 * wp.sin(p[1] * 23.0 - p[0] * 13.0)) + 0.6 * wp.sin(p[0] * 71.0 - p[2] * 39.0)
    return wp.vec3(x, wp.sin(p[0] * 37.0 + x), z)


@wp.func
def spline(t: float):
    a = wp.abs(t)
    r = float(0.0)
    if a < 1.0:
        r = 0.6666667 - a * a + 0.5 * a * a * a
    elif a < 2.0:
        r = (2.0 - a) * (2.0 - a) * (2.0 - a) / 6.0
    return r


@wp.func
def panorama(env: wp.array2d(dtype=wp.vec3), azimuth: float, elevation: float, yaw: float):
    """Cubic B-spline look-up in an equirectangular picture: zenith first, azimuth 0 in the middle column."""
    h = env.shape[0]
    w = env.shape[1]
    u = azimuth / 6.2831853 + 0.5 + yaw
    u = (u - wp.floor(u)) * float(w) - 0.5
    v = (0.5 - elevation / 3.14159265) * float(h) - 0.5
    x0 = int(wp.floor(u))
    y0 = int(wp.floor(v))
    c = wp.vec3(0.0, 0.0, 0.0)
    for j in range(-1, 3):
        row = wp.clamp(y0 + j, 0, h - 1)
        wy = spline(v - float(y0 + j))
        for i in range(-1, 3):
            c = c + env[row, (x0 + i + w) % w] * (wy * spline(u - float(x0 + i)))
    return c


@wp.func
def decor(env: wp.array2d(dtype=wp.vec3), plain: wp.vec3, seed: float, s: float, z: float):
    """What hangs on a wall at ``s`` metres along and ``z`` above the floor: doors, pictures, windows, or one picture
    all over it; cut from the panorama. ``seed`` in [0, 1) says which, 0 none."""
    colour = plain
    if seed > 0.8:
        colour = panorama(env, s * 0.9 + seed * 40.0, (z - 1.2) * 0.7, 0.0)
    elif seed > 0.0:
        width = 1.3 + 2.0 * wp.abs(wp.sin(seed * 91.0))
        cell = wp.floor(s / width)
        state = wp.rand_init(int(seed * 1.0e6), int(cell) + 1000)
        kind = wp.randf(state)
        t = s - (cell + 0.5) * width
        wide = 0.2 + 0.5 * wp.randf(state)
        high = 0.2 + 0.5 * wp.randf(state)
        middle = 1.3 + 0.5 * wp.randf(state)
        turn = wp.randf(state) * 6.2831853
        tint = wp.vec3(0.1 + 0.6 * wp.randf(state), 0.1 + 0.5 * wp.randf(state), 0.1 + 0.5 * wp.randf(state))
        if kind < 0.25:
            wide = 0.45
            high = 1.02
            middle = 1.02
        dx = wp.abs(t) - wide
        dz = wp.abs(z - middle) - high
        out = wp.max(dx, dz)
        if out < 0.0:
            if kind < 0.25:
                colour = tint * 0.6
            elif kind < 0.85:
                colour = panorama(env, t * 1.1 + turn, (z - middle) * 1.1, 0.0)
                if kind > 0.6:
                    colour = colour * 2.0
            if out > -0.045 and kind < 0.85:
                colour = tint
    return colour


@wp.kernel
def backdrop(
    cover: wp.array2d(dtype=float),
    env: wp.array2d(dtype=wp.vec3),
    shadow: wp.array2d(dtype=wp.int64),
    balls: wp.array(dtype=wp.vec4),
    walls: wp.array(dtype=wp.vec4),
    material: wp.array2d(dtype=float),
    texture: wp.array4d(dtype=wp.uint8),
    sh: wp.array(dtype=wp.vec3),
    eye: wp.vec3,
    axes: wp.mat33,
    lens: wp.vec4,
    heading: float,
    yaw: float,
    wide: float,
    floor: float,
    room: int,
    person: wp.vec3,
    centre: wp.vec3,
    right: wp.vec3,
    up: wp.vec3,
    sun: wp.vec3,
    sun_light: wp.vec3,
    sun_share: float,
    scale: float,
    spread: float,
    seed: int,
    back: wp.array2d(dtype=wp.vec3),
    keep: wp.array2d(dtype=float),
):
    """What is behind: the panorama, magnified about the horizon so that its floor stays level, or a room with walls
    (a, b, c of planes a x + b y = c, and the seed of what hangs there; ``room`` is the floor's material, the walls'
    follow). ``keep``: what shadow leaves of it."""
    i, j = wp.tid()
    left = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    if cover[i, j] < 1.0:
        d = wp.normalize(axes * wp.vec3((float(j) - lens[2]) / lens[0], (float(i) - lens[3]) / lens[1], 1.0))
        ground = float(-1.0)
        if d[2] < -0.01:
            ground = (floor - eye[2]) / d[2]
        n = wp.vec3(0.0, 0.0, 1.0)
        k = room
        reach = float(40.0)
        if ground > 0.0 and ground < reach:
            reach = ground
        if room >= 0:
            for w in range(walls.shape[0]):
                wall = walls[w]
                towards = wall[0] * d[0] + wall[1] * d[1]
                t = (wall[2] - wall[0] * eye[0] - wall[1] * eye[1]) / towards
                if towards != 0.0 and t > 0.0 and t < reach:
                    reach = t
                    n = wp.vec3(-wall[0], -wall[1], 0.0)
                    k = room + 1 + w
        p = eye + d * reach
        state = wp.rand_init(seed, i * cover.shape[1] + j)
        near = wp.length(p - person)
        if reach < 30.0 and near < 3.0 and (room >= 0 or ground > 0.0):
            facing = wp.max(wp.dot(n, sun), 0.0)
            if facing > 0.0 and sun_share > 0.02:
                seen = lit(shadow, p, centre, right, up, sun, scale, spread, 0.01, 8, state)
                left = 1.0 - sun_share * (1.0 - seen)
            left = left * wp.pow(open_sky(p, n, balls), 1.5)
        if room >= 0:
            if wp.dot(n, d) > 0.0:
                n = -n
            surface = albedo(material, texture, k, wp.vec2(0.0, 0.0), p, wp.vec3(0.0, 9.0, -9.0))
            light = irradiance(sh, n) + sun_light * wp.max(wp.dot(n, sun), 0.0)
            above = p[2] - floor
            corner = 1.0 - 0.3 * wp.exp(-above * 9.0)
            if k == room:
                corner = 1.0
            elif above < 0.09:
                corner = corner * 0.55
            colour = wp.vec3(surface[0], surface[1], surface[2])
            if k > room:
                wall = walls[k - room - 1]
                colour = decor(env, colour, wall[3], p[1] * wall[0] - p[0] * wall[1], above)
            colour = wp.cw_mul(colour, light) * corner
        else:
            azimuth = wp.atan2(d[1], d[0]) - heading
            azimuth = azimuth - 6.2831853 * wp.floor(azimuth / 6.2831853 + 0.5)
            elevation = wp.asin(wp.clamp(d[2], -1.0, 1.0))
            elevation = wp.clamp(elevation * wide, -1.5, 1.5)
            colour = panorama(env, azimuth * wide + heading, elevation, yaw)
    back[i, j] = colour
    keep[i, j] = left
