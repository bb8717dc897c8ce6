"""Writes what the tests of the common corruptions hold on to: the steps of the published pipeline (Hendrycks & Dietterich 2019)
as the libraries that it was built on compute them: OpenCV, scikit-image, SciPy, Pillow and ImageMagick.

Two kinds of numbers come out. `steps`: every 61st value of an image after a corruption whose random numbers are given.
`distances`: mean L2 distance of eight drawn images to their corruptions, by severity, with numpy's random numbers.

    apt-get install libmagickwand-6.q16-6
    pip install numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 opencv-python-headless==5.0.0.93 pillow==13.0.0 wand==0.7.2
    python scripts/golden/corruptions.py crates/gauntlet-data/src/corruptions/golden.json
"""

import ctypes
import io
import json
import sys

import cv2
import numpy as np
from PIL import Image as Pillow
from scipy import ndimage
from skimage import color, filters, util
from wand.api import library
from wand.image import Image as Wand

library.MagickMotionBlurImage.argtypes = [ctypes.c_void_p] + 3 * [ctypes.c_double]
EVERY = 61


def hashed(k):
    """Numbers in [0, 1) that any language computes alike."""
    return np.abs(np.sin(12.9898 * (np.asarray(k, np.float64) + 1)) * 43758.5453) % 1


def drawn(n, side):
    """Image `n`: a coloured wave, three disks, a little grain; as bytes [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] * (32 / side)
    image = np.empty((side, side, 3))
    for c in range(3):
        k = 100 * n + 10 * c
        wave = np.sin(0.25 * hashed(k) * x + 0.25 * hashed(k + 1) * y + 6 * hashed(k + 2))
        plane = 0.5 + 0.25 * wave
        for disk in range(3):
            at = 100 * n + 40 + 10 * disk
            inside = (x - 32 * hashed(at)) ** 2 + (y - 32 * hashed(at + 1)) ** 2 < (3 + 7 * hashed(at + 2)) ** 2
            plane[inside] = hashed(at + 3 + c)
        grain = hashed(10_000 + np.arange(side * side).reshape(side, side) + side * side * c)
        image[..., c] = plane + 0.1 * (grain - 0.5)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def field(shape, mean, deviation, start=0):
    """Stands for normal noise where the random numbers are given: of the same mean and deviation, but uniform."""
    count = int(np.prod(shape))
    return (mean + deviation * np.sqrt(12) * (hashed(start + np.arange(count)) - 0.5)).reshape(shape)


def smooth(x, sigma, **options):
    return filters.gaussian(x, sigma=sigma, channel_axis=-1 if x.ndim == 3 else None, **options)


def magick(x, radius, sigma, angle):
    picture = Wand.from_array(x)
    library.MagickMotionBlurImage(picture.wand, radius, sigma, angle)
    out = np.array(picture)
    return out if x.ndim == 3 else out[..., 0]


def enlarged(x, factor):
    side = x.shape[0]
    inside = int(np.ceil(side / factor))
    first = (side - inside) // 2
    middle = x[first : first + inside, first : first + inside]
    big = ndimage.zoom(middle, (factor, factor) + (1,) * (x.ndim - 2), order=1)
    trim = (big.shape[0] - side) // 2
    return big[trim : trim + side, trim : trim + side]


# The corruptions. `x` is bytes; results are in [0, 1].


def unit(x):
    return np.asarray(x) / 255


def clip(x):
    return np.clip(x, 0, 1)


def defocus(x, radius, alias):
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (u**2 + v**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (size, size), alias)
    # Disks that touch their frame (radius 8 and 10) lose light when smoothed: this is where ours differs.
    kernel /= kernel.sum()
    return clip(np.stack([cv2.filter2D(unit(x)[..., c], -1, kernel) for c in range(3)], -1))


def glass(x, sigma, reach, rounds, offset):
    x = np.uint8(smooth(unit(x), sigma) * 255)
    side = x.shape[0]
    for _ in range(rounds):
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                dx, dy = offset(), offset()
                # Two views of one array: the published exchange copies.
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return clip(smooth(unit(x), sigma))


def motion(x, radius, sigma, angle):
    return unit(magick(x, radius, sigma, angle))


def zoom(x, factors):
    x = unit(x).astype(np.float32)
    return clip((x + sum(enlarged(x, f) for f in factors)) / (len(factors) + 1))


def snow(x, noise, factor, threshold, radius, sigma, keep, angle):
    x = unit(x).astype(np.float32)
    layer = enlarged(noise, factor)
    layer[layer < threshold] = 0
    layer = unit(magick((clip(layer) * 255).astype(np.uint8), radius, sigma, angle))[..., None]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    return clip(x + layer + np.rot90(layer, 2))


def plasma(side, decay, uniform):
    """Diamond-square on a torus, as whole-array steps. `uniform(shape)` is in [-1, 1)."""
    grid = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = grid[::step, ::step]
        ahead = lambda a, axis: np.roll(a, -1, axis)
        four = corners + ahead(corners, 0) + ahead(corners, 1) + ahead(ahead(corners, 0), 1)
        centres = four / 4 + wibble**2 * uniform(four.shape)
        grid[half::step, half::step] = centres
        for behind, along, at in [(0, 1, np.s_[::step, half::step]), (1, 0, np.s_[half::step, ::step])]:
            four = corners + ahead(corners, along) + centres + np.roll(centres, 1, behind)
            grid[at] = four / 4 + wibble**2 * uniform(four.shape)
        step, wibble = half, wibble / decay
    grid -= grid.min()
    return grid / grid.max()


def fog(x, amount, decay, uniform):
    x = unit(x)
    side = 1 << int(np.ceil(np.log2(x.shape[0])))
    most = x.max()
    x = x + amount * plasma(side, decay, uniform)[: x.shape[0], : x.shape[1], None]
    return clip(x * most / (most + amount))


def hsv(x, channel, change):
    x = color.rgb2hsv(unit(x))
    x[..., channel] = clip(change(x[..., channel]))
    return clip(color.hsv2rgb(x))


def contrast(x, keep):
    mean = unit(x).mean((0, 1), keepdims=True)
    return clip(mean + keep * (unit(x) - mean))


def elastic(x, moves, dx, dy):
    x = unit(x).astype(np.float32)
    side = x.shape[0]
    centre, arm = side // 2, side // 3
    points = np.float32([[centre + arm, centre + arm], [centre + arm, centre - arm], [centre - arm, centre - arm]])
    matrix = cv2.getAffineTransform(points, points + np.float32(moves))
    x = cv2.warpAffine(x, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    at = np.mgrid[0:side, 0:side]
    planes = [ndimage.map_coordinates(x[..., c], (at[0] + dy, at[1] + dx), order=1, mode="reflect") for c in range(3)]
    return clip(np.stack(planes, -1))


def displacement(noise, sigma, strength):
    return strength * smooth(noise, sigma, mode="reflect", truncate=3) if strength else 0 * noise


def pixelate(x, share):
    side = x.shape[0]
    few = int(side * share)
    return unit(Pillow.fromarray(x).resize((few, few), Pillow.BOX).resize((side, side), Pillow.BOX))


def jpeg(x, quality):
    file = io.BytesIO()
    Pillow.fromarray(x).save(file, "JPEG", quality=quality)
    return unit(Pillow.open(file))


def spatter(x, noise, sigma, threshold, strength, mud):
    x = unit(x).astype(np.float32)
    drops = smooth(noise, sigma)
    if mud:
        cover = smooth((drops > threshold).astype(np.float32), strength)
        cover[cover < 0.8] = 0
        return clip(x * (1 - cover[..., None]) + np.array([63, 42, 20]) / 255 * cover[..., None])
    drops[drops < threshold] = 0
    drops = np.minimum(drops * 255, 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    light = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    lit = drops * cv2.blur(light, (3, 3)).astype(np.float32)
    if lit.max() > 0:
        lit *= strength / lit.max()
    return clip(x + lit[..., None] * np.array([175, 238, 238]) / 255)


def counter(start=0):
    """Hashes one after another, as an array of any shape."""
    state = [start]

    def take(shape=()):
        count = int(np.prod(shape))
        values = hashed(state[0] + np.arange(count)).reshape(shape)
        state[0] += count
        return values

    return take


def steps():
    out = {}
    for side in (32, 80):
        x = drawn(0, side)

        def keep(name, result):
            planes = np.asarray(result, np.float64).transpose(2, 0, 1).ravel()
            out[f"{name}-{side}"] = [round(float(v), 4) for v in planes[:: EVERY * (side * side // 1024)]]

        noise = field((side, side), 0.0, 1.0)
        keep("image", unit(x))
        for radius, alias in [(0.5, 0.6), (1.5, 0.1), (3, 0.1), (10, 0.5)]:
            keep(f"defocus {radius}", defocus(x, radius, alias))
        for sigma, reach, rounds in [(0.4, 1, 2), (1.1, 3, 2)]:
            take = counter()
            keep(f"glass {sigma}", glass(x, sigma, reach, rounds, lambda: int(2 * reach * take()) - reach))
        keep("motion 8", motion(x, 8, 2, 37.0))
        keep("motion 20", motion(x, 20, 15, -41.0))
        keep("zoom 1.06", zoom(x, np.arange(1, 1.06, 0.01)))
        keep("zoom 1.26", zoom(x, np.arange(1, 1.26, 0.01)))
        keep("snow 2", snow(x, 0.15 + 0.3 * noise, 1.75, 0.55, 10, 4, 0.9, -100.0))
        take = counter()
        keep("fog", fog(x, 0.75, 2.5, lambda shape: 2 * take(shape) - 1))
        keep("brightness 2", hsv(x, 2, lambda v: v + 0.2))
        keep("saturate 2", hsv(x, 1, lambda s: 0.3 * s))
        keep("saturate 4", hsv(x, 1, lambda s: 2 * s + 0.1))
        keep("contrast", contrast(x, 0.3))
        moves = 4 * (hashed(np.arange(6)).reshape(3, 2) - 0.5)
        noises = [2 * hashed(k + np.arange(side * side)).reshape(side, side) - 1 for k in (500, 90_000)]
        keep("elastic", elastic(x, moves, *(displacement(noise, 1.92, 2.56) for noise in noises)))
        for share in (0.85, 0.65, 0.25):
            keep(f"pixelate {share}", pixelate(x, share))
        for quality in (80, 40, 10):
            keep(f"jpeg {quality}", jpeg(x, quality))
        keep("gaussian-blur", clip(smooth(unit(x), 1.0)))
        keep("water", spatter(x, 0.65 + 0.3 * noise, 1.0, 0.69, 0.5, False))
        keep("mud", spatter(x, 0.65 + 0.1 * noise, 0.5, 0.68, 0.6, True))
    return out


CIFAR = {
    "gaussian-noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot-noise": [500, 250, 100, 75, 50],
    "impulse-noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "speckle-noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "gaussian-blur": [0.4, 0.6, 0.7, 0.8, 1],
    "glass-blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "defocus-blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "motion-blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom-blur": [1.06, 1.11, 1.16, 1.21, 1.26],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    "jpeg-compression": [80, 65, 58, 50, 40],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "elastic-transform": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
}


IMAGENET = {
    "gaussian-noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot-noise": [60, 25, 12, 5, 3],
    "impulse-noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "speckle-noise": [0.15, 0.2, 0.35, 0.45, 0.6],
    "gaussian-blur": [1, 2, 3, 4, 6],
    "glass-blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "defocus-blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "motion-blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom-blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "spatter": [
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    "jpeg-compression": [25, 18, 15, 10, 7],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "elastic-transform": [
        tuple(v * 244 / 224 for v in row)
        for row in [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]
    ],
}


def corrupted(name, x, c, random):
    side, shape = x.shape[0], x.shape
    match name:
        case "gaussian-noise":
            return clip(unit(x) + c * random.normal(size=shape))
        case "shot-noise":
            return clip(random.poisson(unit(x) * c) / c)
        case "impulse-noise":
            return util.random_noise(unit(x), mode="s&p", amount=c, rng=random)
        case "speckle-noise":
            return clip(unit(x) * (1 + c * random.normal(size=shape)))
        case "gaussian-blur":
            return clip(smooth(unit(x), c))
        case "glass-blur":
            return glass(x, *c, lambda: random.integers(-c[1], c[1]))
        case "defocus-blur":
            return defocus(x, *c)
        case "motion-blur":
            return motion(x, *c, random.uniform(-45, 45))
        case "zoom-blur":
            end, step = c if isinstance(c, tuple) else (c, 0.01)
            return zoom(x, np.arange(1, end, step))
        case "fog":
            return fog(x, *c, lambda shape: random.uniform(-1, 1, shape))
        case "snow":
            noise = random.normal(c[0], c[1], (side, side))
            return snow(x, noise, *c[2:], random.uniform(-135, -45))
        case "spatter":
            return spatter(x, random.normal(c[0], c[1], (side, side)), *c[2:])
        case "contrast":
            return contrast(x, c)
        case "brightness":
            return hsv(x, 2, lambda v: v + c)
        case "saturate":
            return hsv(x, 1, lambda s: c[0] * s + c[1])
        case "jpeg-compression":
            return jpeg(x, c)
        case "pixelate":
            return pixelate(x, c)
        case "elastic-transform":
            strength, sigma, affine = (side * v for v in c)
            noises = random.uniform(-1, 1, (2, side, side))
            moves = random.uniform(-affine, affine, (3, 2))
            return elastic(x, moves, *(displacement(noise, sigma, strength) for noise in noises))


def distances(constants, side, images, repeats):
    random = np.random.default_rng(0)
    out = {}
    for name, severities in constants.items():
        row = []
        for c in severities:
            far = [
                np.linalg.norm(corrupted(name, x, c, random) - unit(x))
                for _ in range(repeats)
                for x in images
            ]
            row.append(round(float(np.mean(far)), 3))
        out[name] = row
        print(f"{side:3} {name:18}", row, file=sys.stderr)
    return out


def main():
    out = {
        "steps": steps(),
        "distances-32": distances(CIFAR, 32, [drawn(n, 32) for n in range(8)], 60),
        "distances-80": distances(IMAGENET, 80, [drawn(n, 80) for n in range(8)], 15),
    }
    lines = [
        f'  {json.dumps(group)}: {{\n' + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n  }"
        for group, rows in out.items()
    ]
    with open(sys.argv[1], "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
