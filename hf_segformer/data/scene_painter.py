# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Paints one scene: sky, hills, water, meadow, buildings, streets with cars and people, trees, poles and wires.

Lengths are in 1/128 of the picture's side (`_u` turns them into pixels); everything is painted from far to near.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from .raster import Canvas, Colour, Draws, Shape, value_noise

CLASS_NAMES = ("sky", "hill", "building", "tree", "grass", "road", "water", "car", "person", "pole", "wire")
SKY, HILL, BUILDING, TREE, GRASS, ROAD, WATER, CAR, PERSON, POLE, WIRE = range(len(CLASS_NAMES))

SKIES = (
    (128, 178, 226),
    (96, 140, 200),
    (196, 202, 208),
    (238, 196, 160),
    (208, 156, 176),
    (84, 96, 140),
    (168, 208, 220),
)
HILLS = ((112, 130, 164), (142, 128, 156), (104, 126, 92), (156, 130, 104), (172, 170, 180), (90, 96, 116))
WALLS = (
    (178, 92, 70),
    (204, 182, 146),
    (150, 150, 152),
    (222, 214, 204),
    (96, 106, 130),
    (196, 150, 84),
    (128, 142, 120),
)
ROOFS = ((150, 70, 54), (90, 84, 88), (120, 96, 78), (76, 92, 112))
LEAVES = ((64, 112, 52), (92, 138, 62), (40, 84, 60), (190, 118, 50), (168, 66, 50), (196, 166, 66), (206, 150, 168))
TRUNKS = ((92, 70, 52), (120, 110, 100), (62, 48, 42))
MEADOWS = (
    (112, 156, 70),
    (146, 166, 84),
    (90, 140, 64),
    (190, 172, 100),
    (146, 116, 80),
    (206, 208, 206),
    (80, 132, 96),
    (166, 150, 130),
)
ROADS = ((104, 104, 108), (140, 138, 136), (166, 142, 112), (112, 90, 82), (92, 104, 124), (176, 174, 170))
WATERS = (
    (82, 124, 168),
    (110, 156, 176),
    (64, 120, 130),
    (130, 150, 172),
    (170, 150, 156),
    (60, 84, 130),
    (110, 132, 116),
)
PAINTS = ((190, 52, 46), (228, 226, 220), (58, 62, 70), (70, 106, 166), (216, 176, 60), (84, 130, 90), (150, 150, 156))
CLOTHES = (*PAINTS, (150, 84, 60), (120, 90, 140), (220, 140, 120))
SKINS = ((236, 196, 168), (204, 152, 116), (150, 104, 76), (96, 66, 52))
HAIR = ((40, 32, 28), (110, 76, 48), (196, 160, 96), (150, 148, 146))
RODS = ((70, 66, 64), (110, 84, 62), (150, 150, 150), (206, 204, 196), (88, 104, 96))
PANES = ((52, 60, 76), (90, 110, 130), (40, 36, 40))
CAR_GLASS = ((48, 56, 70), (120, 140, 156))
LAMPLIGHT, MARKING, SNOW = (250, 232, 176), (226, 222, 206), (222, 226, 232)
TAIL_LIGHT, TYRE, HUB, SILL = (206, 48, 38), (32, 32, 34), (164, 164, 166), (222, 218, 210)

Task = tuple[int, Callable[[], None]]  # row of the foot on the ground, and what paints the object


class ScenePainter:
    """One picture in the making.

    Args:
        key: Key of the random draws.
        size: Height and width in pixels.
    """

    def __init__(self, key: int, size: int):
        self.draws = Draws(key)
        self.size = size
        self.canvas = Canvas(size, size)
        self.horizon = self.draws.integer(size * 36 // 100, size * 54 // 100)
        self.grain = self._noise(2, 2) // 8
        self.coarse = self._noise(12, 16)

    def paint(self) -> tuple[np.ndarray, np.ndarray]:
        """Return image uint8 (size, size, 3) and label uint8 (size, size)."""
        self._sky()
        for _ in range(self.draws.integer(0, 2)):
            self._hill()
        self._ground()
        self._skyline()
        for _, paint in sorted(self._street() + self._trees(), key=lambda task: task[0]):
            paint()
        return self._light(), self.canvas.label

    def _u(self, length: int) -> int:
        return length * self.size // 128

    def _between(self, low: int, high: int) -> int:
        """Draw a length between two given in 1/128, in pixels."""
        return self.draws.integer(self._u(low), self._u(high))

    def _noise(self, cell_y: int, cell_x: int) -> np.ndarray:
        return value_noise(self.draws, self.size, self.size, max(self._u(cell_y), 1), max(self._u(cell_x), 1))

    def _profile_noise(self, cell: int) -> np.ndarray:
        return value_noise(self.draws, 1, self.size, 1, max(self._u(cell), 1))[0]

    # The landscape

    def _sky(self) -> None:
        size, draws = self.size, self.draws
        zenith, low = (np.array(draws.colour(SKIES, 20), np.int32) for _ in range(2))
        gradient = zenith + (low - zenith) * np.arange(size, dtype=np.int32)[:, None, None] // size
        clouds = self._noise(10, 28) + self._noise(5, 12) // 2
        cover, strength = draws.integer(-10, 60), draws.pick((0, 40, 70, -40))
        texture = np.clip(clouds - cover, 0, 100) * strength // 100
        self.canvas.paint(self.canvas.box(0, 0, size, size), gradient, SKY, texture)

    def _hill(self) -> None:
        ridge = self._profile_noise(24) + self._profile_noise(7) // 4
        profile = self.horizon - self._between(14, 32) + ridge * self._between(8, 15) // 128
        period, across = self._u(12), np.arange(self.size, dtype=np.int32)
        phase = (2 * across[:, None] + across + self.coarse * self.size // 2560) % period
        strata = np.abs(2 * phase - period) * 60 // period - 30
        self.canvas.paint(self.canvas.below(profile), self.draws.colour(HILLS, 24), HILL, strata // 2 + self.grain)
        if self.draws.chance(25):
            self.canvas.paint(self.canvas.ribbon(0, profile, self._u(5)), SNOW, HILL, strata // 6)

    def _ground(self) -> None:
        level = np.full(self.size, self.horizon)
        shore = self._profile_noise(16) * self._u(4) // 128
        if self.draws.chance(45):
            self._water(level)
            self._grass(level + self._between(12, 34) + shore)
            return
        self._grass(level)
        if self.draws.chance(30):
            self._water(self.size - self._between(16, 36) + shore)

    def _water(self, profile: np.ndarray) -> None:
        ripples = self._noise(2, 14)
        texture = np.where(ripples > 24, 26, np.where(ripples < -34, -18, 0)) + self.coarse // 16
        self.canvas.paint(self.canvas.below(profile), self.draws.colour(WATERS, 24), WATER, texture)

    def _grass(self, profile: np.ndarray) -> None:
        texture = self._noise(4, 1) // 3 + self.coarse // 7
        self.canvas.paint(self.canvas.below(profile), self.draws.colour(MEADOWS, 20), GRASS, texture)

    def _shadow(self, x: int, base: int, radius: int) -> None:
        self.canvas.shade(self.canvas.ellipse(x + radius // 3, base, radius * 5 // 4, max(radius // 4, 1)), 62)

    # Buildings

    def _skyline(self) -> None:
        x = self._between(0, 60) - self._u(20)
        for _ in range(self.draws.pick((0, 1, 2, 3))):
            width, height = self._between(32, 58), self._between(28, 64)
            self._building(x, self.horizon + self._between(1, 9), width, height)
            x += width + self._u(self.draws.pick((0, 0, 4, 12, 30)))

    def _building(self, left: int, base: int, width: int, height: int) -> None:
        draws, canvas, u = self.draws, self.canvas, self._u
        top, right = base - height, left + width
        course = np.where(np.arange(self.size, dtype=np.int32)[:, None] % u(3) == 0, -16, 4)
        courses = np.broadcast_to(course, (self.size, self.size))
        texture = courses + self.grain if draws.chance(60) else self.grain
        canvas.paint(canvas.box(left, top, right, base), draws.colour(WALLS, 20), BUILDING, texture)
        if draws.chance(50):
            peak = self._between(8, 16)
            roof = canvas.polygon((left - u(2), top), (left + width // 2, top - peak), (right + u(2), top))
        else:
            roof = canvas.box(left - u(1), top - u(3), right + u(1), top + u(1))
        canvas.paint(roof, draws.colour(ROOFS, 20), BUILDING, courses)
        self._windows(left, top, right, base)
        if draws.chance(60):
            canvas.shade(canvas.box(right - width // 4, top, right, base), 72)

    def _windows(self, left: int, top: int, right: int, base: int) -> None:
        draws, canvas, u = self.draws, self.canvas, self._u
        wide, tall, gap = self._between(4, 6), self._between(5, 7), self._between(4, 5)
        left, top, pitch = left + u(3), top + u(4), (wide + gap, tall + gap)
        columns, rows = (right - 1 - left) // pitch[0], (base - 1 - top) // pitch[1]
        panes = canvas.grid(left, top, columns, rows, (wide, tall), pitch)
        canvas.paint(panes, draws.colour(PANES, 12), BUILDING)
        for y in range(top, top + rows * pitch[1], pitch[1]):
            for x in range(left, left + columns * pitch[0], pitch[0]):
                if draws.chance(12):
                    canvas.paint(canvas.box(x, y, x + wide, y + tall), LAMPLIGHT, BUILDING)
        canvas.paint(canvas.grid(left, top + tall, columns, rows, (wide, 1), pitch), SILL, BUILDING)

    # Trees

    def _trees(self) -> list[Task]:
        tasks = []
        for _ in range(self.draws.integer(0, 3)):
            depth = self.draws.integer(0, 100) ** 2 * (self.size - self.horizon) // 11000
            reach = self._u(34) + depth * 3 // 4
            height, x = self.draws.integer(reach * 4 // 5, reach * 5 // 4), self._between(0, 128)
            tasks.append(self._task(self._tree, x, self.horizon + depth, height))
        return tasks

    @staticmethod
    def _task(paint: Callable[..., None], x: int, base: int, *more: Any) -> Task:
        return base, lambda: paint(x, base, *more)

    def _tree(self, x: int, base: int, height: int) -> None:
        draws, canvas = self.draws, self.canvas
        clumps = self._noise(3, 3)
        leaves = np.where(clumps > 26, 30, np.where(clumps < -20, -34, 0)) + self.grain
        colour, radius, thick = draws.colour(LEAVES, 20), max(height // 3, 4), max(height // 8, self._u(3))
        self._shadow(x, base, radius)
        trunk = canvas.box(x - thick // 2, base - height // 2, x - thick // 2 + thick, base)
        canvas.paint(trunk, draws.colour(TRUNKS, 12), TREE, self.grain)
        for shape in self._conifer(x, base, height) if draws.chance(30) else self._crown(x, base, height):
            canvas.paint(shape, colour, TREE, leaves)

    def _conifer(self, x: int, base: int, height: int) -> list[Shape]:
        shapes = []
        for level in range(3):
            tip, foot = base - height + level * height // 5, base - height // 2 + level * height // 6
            half = height * (level + 2) // 11
            shapes.append(self.canvas.polygon((x - half, foot), (x, tip), (x + half, foot)))
        return shapes

    def _crown(self, x: int, base: int, height: int) -> list[Shape]:
        draws, canvas, radius = self.draws, self.canvas, max(height // 3, 4)
        y = base - height + radius
        shapes = [canvas.ellipse(x, y, radius * 4 // 5, radius)]
        for _ in range(draws.integer(3, 5)):
            puff = draws.integer(radius // 2, radius * 3 // 4)
            right, down = draws.integer(-radius, radius) * 3 // 4, draws.integer(-radius, radius) // 2
            shapes.append(canvas.ellipse(x + right, y + down, puff, puff))
        return shapes

    # Streets

    def _street(self) -> list[Task]:
        kind = self.draws.integer(0, 99)
        people = self._people(self.draws.integer(1, 2))
        if kind < 42:
            return people + self._street_across()
        return people + self._street_ahead() if kind < 84 else people

    def _asphalt(self) -> tuple[Colour, np.ndarray]:
        speckle = self._noise(2, 2)
        texture = np.where(speckle > 52, 14, np.where(speckle < -52, -14, 0)) + self.coarse // 24
        return self.draws.colour(ROADS, 20), texture

    def _street_across(self) -> list[Task]:
        draws, canvas, size, u = self.draws, self.canvas, self.size, self._u
        top = self.horizon + self._between(12, 20)
        bottom = min(top + self._between(24, 38), size - u(2))
        colour, texture = self._asphalt()
        canvas.paint(canvas.box(0, top, size, bottom), colour, ROAD, texture)
        for edge in (top, bottom - u(2)):
            canvas.shade(canvas.box(0, edge, size, edge + u(2)), 125)
        if draws.chance(70):
            middle = (top + bottom) // 2
            for x in range(-self._between(0, 12), size, u(16)):
                canvas.paint(canvas.box(x, middle, x + u(9), middle + u(2)), MARKING, ROAD)
        tasks = self._pole_row(top - u(2))
        for base in (top + u(7), bottom - u(4)):
            if draws.chance(65):
                tasks.append(self._task(self._car_side, self._between(0, 100) - u(10), base, self._between(46, 60)))
        return tasks

    def _street_ahead(self) -> list[Task]:
        draws, canvas, size, u, horizon = self.draws, self.canvas, self.size, self._u, self.horizon
        vanish, left, right = self._between(32, 96), self._between(0, 56) - u(24), size + u(24) - self._between(0, 56)
        colour, texture = self._asphalt()
        corners = ((vanish - u(2), horizon), (vanish + u(2), horizon), (right, size), (left, size))
        canvas.paint(canvas.polygon(*corners), colour, ROAD, texture)
        depth = size - horizon

        def across(y: int, percent: int) -> int:
            """Return x at a percentage of the street's width."""
            return vanish + (left + (right - left) * percent // 100 - vanish) * (y - horizon) // depth

        y = horizon + u(4)
        while y < size:
            length, half = u(2) + (y - horizon) // 5, u(1) + (y - horizon) // 32
            middle = across(y, 50)
            canvas.paint(canvas.box(middle - half, y, middle + half, y + length), MARKING, ROAD)
            y += 2 * length + 1
        tasks = self._pole_avenue(across, draws.pick((-12, 112)))
        for _ in range(draws.integer(0, 2)):
            base = horizon + draws.integer(depth // 2, depth - u(4))
            width = (right - left) * (base - horizon) // depth * 7 // 20
            tasks.append(self._task(self._car_rear, across(base, draws.pick((25, 75))), base, width))
        return tasks

    # Cars

    def _car_side(self, left: int, base: int, length: int) -> None:
        draws, canvas, u = self.draws, self.canvas, self._u
        paint, glass = draws.colour(PAINTS, 24), draws.colour(CAR_GLASS, 14)
        wheel, roof = max(length // 9, 3), base - length * 2 // 5
        belt, right = base - length * 6 // 25, left + length
        self._shadow(left + length // 2 - 2, base, length // 2)

        def trapezoid(foot: int, head: int, inset: int) -> Shape:
            near = (left + length * (20 + inset) // 100, belt), (left + length * (33 + inset) // 100, head)
            far = (left + length * (75 - inset) // 100, head), (left + length * (90 - inset) // 100, belt)
            return canvas.polygon(*near, *far)

        canvas.paint(trapezoid(belt, roof, 0), paint, CAR)
        canvas.paint(trapezoid(belt, roof + u(2), 5), glass, CAR)
        canvas.paint(canvas.box(left + length // 2, roof + 1, left + length // 2 + u(2), belt), paint, CAR)
        canvas.paint(canvas.box(left, belt, right, base - wheel // 2), paint, CAR)
        canvas.shade(canvas.box(left, base - wheel, right, base - wheel // 2), 66)
        canvas.paint(canvas.box(left, belt + u(2), left + u(3), belt + u(5)), LAMPLIGHT, CAR)
        canvas.paint(canvas.box(right - u(2), belt + u(2), right, belt + u(5)), TAIL_LIGHT, CAR)
        for x in (left + length // 5, left + length * 4 // 5):
            canvas.paint(canvas.ellipse(x, base - wheel + 1, wheel, wheel), TYRE, CAR)
            canvas.paint(canvas.ellipse(x, base - wheel + 1, wheel // 2, wheel // 2), HUB, CAR)

    def _car_rear(self, x: int, base: int, width: int) -> None:
        draws, canvas = self.draws, self.canvas
        paint, glass = draws.colour(PAINTS, 24), draws.colour(CAR_GLASS, 14)
        half, height = width // 2, width * 4 // 5
        belt, roof, tyre, lamp = base - height // 2, base - height, max(width // 6, 2), max(width // 5, 2)
        self._shadow(x, base, half)
        for side in (x - half, x + half - tyre):
            canvas.paint(canvas.box(side, base - tyre - 1, side + tyre, base + 1), TYRE, CAR)
        for colour, foot, head, low, high in (
            (paint, belt, roof, half, half * 3 // 4),
            (glass, belt - 1, roof + max(height // 10, 1), half * 4 // 5, half * 3 // 5),
        ):
            canvas.paint(
                canvas.polygon((x - low, foot), (x - high, head), (x + high, head), (x + low, foot)), colour, CAR
            )
        canvas.paint(canvas.box(x - half, belt, x + half, base - 1), paint, CAR)
        for side in (x - half, x + half - lamp):
            canvas.paint(canvas.box(side, belt + 1, side + lamp, belt + 1 + max(lamp // 2, 1)), TAIL_LIGHT, CAR)
        canvas.paint(canvas.box(x - lamp // 2, base - height // 4, x + lamp // 2 + 1, base - height // 8), SILL, CAR)
        canvas.shade(canvas.box(x - half, base - height // 8, x + half, base - 1), 66)

    # People

    def _people(self, count: int) -> list[Task]:
        tasks = []
        for _ in range(count):
            base = self.horizon + self.draws.integer(self._u(14), self.size - self.horizon - self._u(2))
            height = self._u(26) + (base - self.horizon) * self.draws.integer(38, 50) // 100
            tasks.append(self._task(self._person, self._between(4, 124), base, height))
        return tasks

    def _person(self, x: int, base: int, height: int) -> None:
        draws, canvas = self.draws, self.canvas
        shirt, trousers, skin = draws.colour(CLOTHES, 24), draws.colour(CLOTHES, 24), draws.colour(SKINS, 10)
        half, head, stride = max(height // 7, 2), max(height // 11, 1), draws.integer(0, height // 12)
        arm, leg = max(half // 2, 1), max(half * 4 // 5, 2)
        hip, neck = base - height * 45 // 100, base - height * 84 // 100
        self._shadow(x, base, half + 2)
        for corners in (
            ((x - half, hip), (x, hip), (x + 1 - stride, base), (x - leg - stride, base)),
            ((x, hip), (x + half, hip), (x + leg + stride, base), (x - 1 + stride, base)),
        ):
            canvas.paint(canvas.polygon(*corners), trousers, PERSON)
        canvas.paint(canvas.box(x - half, neck, x + half + 1, hip + 1), shirt, PERSON)
        for side in (x - half - arm, x + half + 1):
            canvas.paint(canvas.box(side, neck + 1, side + arm, hip), shirt, PERSON)
            canvas.paint(canvas.box(side, hip - 1, side + arm, hip + arm), skin, PERSON)
        top = base - height + head + 1
        canvas.paint(canvas.ellipse(x, top, head + 1, head + 1), skin, PERSON)
        canvas.paint(
            canvas.box(x - head - 1, top - head - 1, x + head + 2, top - head // 2), draws.colour(HAIR, 12), PERSON
        )

    # Poles and wires

    def _pole_row(self, base: int) -> list[Task]:
        if self.draws.chance(10):
            return []
        spacing, height, width = self._between(50, 78), self._between(48, 70), self._u(5)
        rod = self.draws.colour(RODS, 14)
        tops = [(x, base - height) for x in range(self._between(2, 42) - spacing, self.size + spacing, spacing)]
        return [(base, lambda: self._pole_line(tops, [base] * len(tops), [width] * len(tops), rod))]

    def _pole_avenue(self, across: Callable[[int, int], int], percent: int) -> list[Task]:
        if self.draws.chance(10):
            return []
        rod, tall = self.draws.colour(RODS, 14), self.draws.integer(90, 120)
        reaches = [self._u(reach) for reach in (16, 34, 72)]
        bases = [self.horizon + reach for reach in reaches]
        tops = [
            (across(base, percent), base - self._u(18) - tall * reach // 100)
            for base, reach in zip(bases, reaches, strict=True)
        ]
        widths = [self._u(width) for width in (3, 5, 6)]
        return [(bases[0], lambda: self._pole_line(tops, bases, widths, rod))]

    def _pole_line(self, tops: list[tuple[int, int]], bases: list[int], widths: list[int], rod: Colour) -> None:
        """Poles from far to near; either lamps, or masts with one or two wires from each to the next."""
        draws, canvas, u = self.draws, self.canvas, self._u
        strands = draws.pick((0, 1, 2, 2))
        sky = canvas.image[: self.horizon // 2]
        bright = sky.sum(dtype=np.int64) > 100 * sky.size
        cable = draws.colour(((46, 44, 46),) if bright else ((214, 210, 200),), 14)
        for (x0, y0), (x1, y1) in itertools.pairwise(tops):
            for strand in range(strands):
                drop = u(3 + 14 * strand)
                self._wire(x0, y0 + drop, x1, y1 + drop, cable)
        for (x, top), base, width in zip(tops, bases, widths, strict=True):
            left = x - width // 2
            self._shadow(x, base, u(4))
            canvas.paint(canvas.box(left, top, left + width, base), rod, POLE)
            canvas.shade(canvas.box(left, top, left + u(1), base), 135)
            canvas.shade(canvas.box(left + width - u(2), top, left + width, base), 60)
            if strands:
                canvas.paint(canvas.box(left - u(4), top + u(2), left + width + u(4), top + u(5)), rod, POLE)
            else:
                canvas.paint(canvas.box(left, top, left + u(10), top + u(3)), rod, POLE)
                canvas.paint(canvas.box(left + u(7), top + u(3), left + u(12), top + u(5)), LAMPLIGHT, POLE)

    def _wire(self, x0: int, y0: int, x1: int, y1: int, cable: Colour) -> None:
        if x1 < x0:
            x0, y0, x1, y1 = x1, y1, x0, y0
        span = max(x1 - x0, 1)
        t = np.arange(span)
        sag = span // 10
        profile = y0 + (y1 - y0) * t // span + 4 * sag * t * (span - t) // span**2
        self.canvas.paint(self.canvas.ribbon(x0, profile, self._u(3)), cable, WIRE)

    # Light

    def _light(self) -> np.ndarray:
        """Tint the picture, light it from one side and add sensor noise."""
        draws, size = self.draws, self.size
        along = 2 * np.arange(size, dtype=np.int32) - size
        slope_y, slope_x = draws.integer(-22, 22), draws.integer(-22, 22)
        slope = 256 + (along[:, None] * slope_y + along[None] * slope_x) * 256 // (100 * size)
        exposure = draws.integer(74, 112)
        strength = draws.integer(4, 11)
        lit = np.empty((size, size, 3), np.uint8)
        for channel in range(3):
            noise = (draws.bytes(size, size) + draws.bytes(size, size) - 255) * strength // 128
            tint = draws.integer(90, 110) * exposure * 256 // 10000
            lit[..., channel] = np.clip((self.canvas.image[..., channel] * (slope * tint >> 8) >> 8) + noise, 0, 255)
        return lit
