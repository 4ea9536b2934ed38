# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The 16 image corruptions of Cityscapes-C, on which the SegFormer paper measures robustness (arXiv 2105.15203, 4.4).

Parameters are those of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261; github.com/hendrycks/robustness, which is
Apache-2.0), geometry for pictures of any size that of github.com/bethgelab/imagecorruptions, as Cityscapes-C needs it
(Kamann & Rother, arXiv 1908.05005). With the same random draws the results equal that library's to one grey level; the
draws themselves are those of NumPy's `Generator` and depend on the seed alone.

ImageNet-C's six photographs of frost are not part of this package. Without them frost is drawn, with brightness and
contrast in the photographs' range: numbers for drawn frost are not comparable with published ones.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

# Name of each corruption and the number of severities, from 1, over which the paper averages it.
CORRUPTIONS: dict[str, int] = {
    "motion_blur": 5,
    "defocus_blur": 5,
    "glass_blur": 5,
    "gaussian_blur": 5,
    "gaussian_noise": 3,
    "impulse_noise": 3,
    "shot_noise": 3,
    "speckle_noise": 3,
    "brightness": 5,
    "contrast": 5,
    "saturate": 5,
    "jpeg_compression": 5,
    "snow": 5,
    "spatter": 5,
    "fog": 5,
    "frost": 5,
}

_SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(
    image: np.ndarray, name: str, severity: int, seed: int = 0, frost_textures: str | Path | None = None
) -> np.ndarray:
    """Corrupt one picture.

    Args:
        image: (H, W, 3) uint8 RGB, any size.
        name: One of `CORRUPTIONS`.
        severity: 1 (mild) to 5 (severe).
        seed: At least 0; equal seeds give equal results. Give every picture of a data set its own, such as its index.
        frost_textures: Folder with photographs of frost, such as `ImageNet-C/imagenet_c/imagenet_c/frost` of
            github.com/hendrycks/robustness; used by `"frost"` alone. Default: frost is drawn.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: The image has another type or shape, the name is unknown, severity or seed is out of range, or the
            folder holds no picture.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        shape = getattr(image, "shape", None)
        raise ValueError(
            f"image must be a (height, width, 3) uint8 array, got {type(image).__name__} of shape {shape} and type "
            f"{getattr(image, 'dtype', None)}"
        )
    if not image.size:
        raise ValueError(f"image must have pixels, got the shape {image.shape}")
    if name not in CORRUPTIONS:
        close = difflib.get_close_matches(str(name), CORRUPTIONS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}{hint}")
    if isinstance(severity, bool) or severity not in _SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 to 5, got {severity!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    rng = np.random.default_rng(seed)
    if name == "frost":
        return _as_picture(_frost(image, severity, rng, frost_textures))
    return _as_picture(_FUNCTIONS[name](image, severity, rng))


def _as_picture(values: np.ndarray) -> np.ndarray:
    # Truncation instead of rounding, as ImageNet-C was written.
    return np.clip(values, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- blur
# Every function takes the picture (H, W, 3) uint8 and returns values in the same units, of any floating-point type.
# The order and shape of the random draws are the reference's, so that tests can compare with it.


def _motion_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _smear(image.astype(np.float32), radius, sigma, rng.uniform(-45, 45))


def _defocus_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    radius, alias_sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    extent, window = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-extent : extent + 1, -extent : extent + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (window, window), alias_sigma)
    return cv2.filter2D(image.astype(np.float32), -1, kernel)


def _glass_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    sigma, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    blurred = _gaussian(image.astype(np.float64), sigma).astype(np.uint8)
    for _ in range(passes):
        blurred = _displaced(blurred, reach, rng)
    return _gaussian(blurred.astype(np.float64), sigma)


def _gaussian_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    return _gaussian(image.astype(np.float64), (1, 2, 3, 4, 6)[severity - 1])


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    window = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(values, (window, window), sigma, borderType=cv2.BORDER_REPLICATE)


def _smear(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Average of the picture moved step by step in one direction (degrees), with half a Gaussian's weights."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    rows = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    columns = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1), np.float32)
    np.add.at(kernel, (2 * radius + rows, 2 * radius + columns), weights / weights.sum())
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _displaced(image: np.ndarray, reach: int, rng: Generator) -> np.ndarray:
    """Every pixel takes the value of a random neighbour, from the last pixel to the first, so that values travel.

    ImageNet-C means to swap the two, but its assignment between views copies one way; so does this.
    """
    height, width = image.shape[:2]
    own: np.ndarray = np.arange(height * width).reshape(height, width)
    inside = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    visited = own[inside]
    move = rng.integers(-reach, reach, size=(visited.size, 2))[::-1]  # columns, rows; last pixel first
    source = own.copy().ravel()
    source[visited.ravel()] = visited.ravel() + move[:, 1] * width + move[:, 0]
    # A source behind the pixel has itself been overwritten before: follow such links to where they end.
    own = own.ravel()
    link = np.where(source > own, source, own)
    while True:
        further = link[link]
        if np.array_equal(further, link):
            return image.reshape(-1, 3)[source[link]].reshape(image.shape)
        link = further


# --------------------------------------------------------------------------------------------------------------- noise


def _gaussian_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    return image + 255 * rng.normal(size=image.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1])


def _impulse_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    hit = rng.random(image.shape) <= (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    return np.where(hit, 255.0 * (rng.random(image.shape) <= 0.5), image)


def _shot_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(image / 255 * photons) * (255 / photons)


def _speckle_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    return image * (1 + rng.normal(size=image.shape, scale=(0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]))


# ------------------------------------------------------------------------------------------------------------- digital


def _brightness(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    return _change_hsv(image, 2, 1, (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1])


def _contrast(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return (image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def _saturate(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    return _change_hsv(image, 1, *((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1])


def _change_hsv(image: np.ndarray, channel: int, factor: float, offset: float) -> np.ndarray:
    """One channel of hue, saturation and value multiplied and shifted, in [0, 1]."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + offset, 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255


def _jpeg_compression(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(file))


# ------------------------------------------------------------------------------------------------------------- weather


def _snow(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = image.shape[:2]
    flakes = rng.normal(size=(height, width), loc=mean, scale=deviation)
    for axis in (0, 1):
        flakes = _zoomed(flakes, axis, zoom)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1)).astype(np.float32)
    flakes = _smear(flakes, radius, sigma, rng.uniform(-135, -45))[:height, :width, None]
    flakes = np.round(flakes * 255)
    picture = image.astype(np.float32)
    pale = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 127.5
    return keep * picture + (1 - keep) * np.maximum(picture, pale) + flakes + np.rot90(flakes, 2)


def _zoomed(values: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """The middle 1/factor of an axis, stretched linearly to at least the axis's length."""
    length = values.shape[axis]
    count = int(np.ceil(length / factor))
    first = (length - count) // 2
    position = first + np.linspace(0, count - 1, round(count * factor))
    lower = np.minimum(position.astype(int), first + count - 1)
    upper = np.minimum(lower + 1, first + count - 1)
    share = np.expand_dims(position - lower, 1 - axis)
    return values.take(lower, axis) * (1 - share) + values.take(upper, axis) * share


def _spatter(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    mean, deviation, sigma, threshold, strength, is_mud = (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    )[severity - 1]
    liquid = _gaussian(rng.normal(size=image.shape[:2], loc=mean, scale=deviation), sigma)
    if is_mud:
        cover = _gaussian((liquid > threshold).astype(np.float32), strength)[..., None]
        cover[cover < 0.8] = 0
        return image * (1 - cover) + cover * (63, 42, 20)
    liquid[liquid < threshold] = 0
    drops = strength * _drops((liquid * 255).astype(np.uint8))[..., None]
    return image + drops * (175, 238, 238)


def _drops(liquid: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] of drops of water on a pane, embossed near their rims, from their uint8 thickness."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    relief = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32))
    drops = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    return drops / max(drops.max(), 1)


def _fog(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    height, width = image.shape[:2]
    fog = 255 * strength * _plasma(height, width, decay, rng)[..., None]
    brightest = float(image.max())
    return (image + fog) * (brightest / (brightest + 255 * strength))


def _plasma(height: int, width: int, decay: float, rng: Generator) -> np.ndarray:
    """Part of a cloud by the diamond-square algorithm, whose heights span [0, 1]; the lower the decay, the rougher."""
    step = 1 << max(height - 1, width - 1, 2).bit_length()
    heights = np.zeros((step, step))
    amplitude = 100.0

    def middle(a: np.ndarray, a_axis: int, a_shift: int, b: np.ndarray, b_axis: int, b_shift: int) -> np.ndarray:
        neighbours = a + np.roll(a, a_shift, a_axis) + b + np.roll(b, b_shift, b_axis)
        return neighbours / 4 + amplitude * rng.uniform(-amplitude, amplitude, a.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        centres = middle(corners, 0, -1, np.roll(corners, -1, 1), 0, -1)
        heights[half::step, half::step] = centres
        heights[::step, half::step] = middle(centres, 0, 1, corners, 1, -1)
        heights[half::step, ::step] = middle(centres, 1, 1, corners, 0, -1)
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights[:height, :width] / heights.max()


def _frost(image: np.ndarray, severity: int, rng: Generator, textures: str | Path | None) -> np.ndarray:
    keep, strength = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = image.shape[:2]
    if textures is None:
        texture = _drawn_frost(height, width, rng)
    else:
        texture = _photographed_frost(height, width, rng, Path(textures))
    return keep * image + strength * texture


def _photographed_frost(height: int, width: int, rng: Generator, folder: Path) -> np.ndarray:
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"frost_textures must be a folder with .png or .jpg files, got {folder}")
    texture = np.asarray(Image.open(files[rng.integers(0, len(files))]).convert("RGB"))
    scale = 1.1 * max(1, height / texture.shape[0], width / texture.shape[1])
    size = [int(np.ceil(side * scale)) for side in texture.shape[1::-1]]
    texture = cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
    top, left = rng.integers(0, texture.shape[0] - height), rng.integers(0, texture.shape[1] - width)
    return texture[top : top + height, left : left + width]


def _drawn_frost(height: int, width: int, rng: Generator) -> np.ndarray:
    """Needles of ice in several directions on a cloud, with the photographs' range of brightness and contrast."""
    # The photographs are about 560 pixels wide and stretched over larger pictures.
    scale = min(560 / max(height, width), 1)
    rows, columns = max(round(height * scale), 1), max(round(width * scale), 1)
    radius = max(max(rows, columns) // 40, 2)
    ice = 2 * _plasma(rows, columns, 1.8, rng)
    for angle in rng.uniform(0, 360, 8):
        noise = rng.normal(size=(rows + 4 * radius, columns + 4 * radius)).astype(np.float32)
        needles = np.abs(_smear(noise, radius, radius, angle))[2 * radius :, 2 * radius :][:rows, :columns]
        ice = np.maximum(ice, 8 * needles * _plasma(rows, columns, 1.7, rng))
    ice = (ice - ice.mean()) / max(ice.std(), 1e-6)
    grey = rng.uniform(90, 205) + rng.uniform(20, 45) * ice[..., None]
    return cv2.resize(np.clip(grey + np.array([-14, 2, 12]), 0, 255), (width, height), interpolation=cv2.INTER_CUBIC)


_FUNCTIONS: dict[str, Callable[[np.ndarray, int, Generator], np.ndarray]] = {
    "motion_blur": _motion_blur,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "gaussian_blur": _gaussian_blur,
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "shot_noise": _shot_noise,
    "speckle_noise": _speckle_noise,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "jpeg_compression": _jpeg_compression,
    "snow": _snow,
    "spatter": _spatter,
    "fog": _fog,
}
