"""The words of wan_tiny's little world: eight colours, six shapes, ten motions, seven backgrounds."""

from __future__ import annotations

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (225, 25, 25),
    "green": (30, 180, 50),
    "blue": (35, 85, 255),
    "yellow": (250, 225, 40),
    "purple": (150, 40, 205),
    "cyan": (40, 215, 225),
    "orange": (255, 135, 10),
    "white": (255, 255, 255),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "ring", "star", "cross")
ROUND: frozenset[str] = frozenset({"circle", "ring"})
"""Shapes whose turning cannot be seen; they are never said to spin."""
MOTIONS: tuple[str, ...] = (
    "moves right",
    "moves left",
    "moves up",
    "moves down",
    "stays still",
    "grows",
    "shrinks",
    "spins",
    "bounces",
    "circles around",
)
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "black": ((0, 0, 0), (0, 0, 0)),
    "gray": ((112, 112, 112), (112, 112, 112)),
    "navy": ((12, 18, 72), (12, 18, 72)),
    "brown": ((92, 56, 28), (92, 56, 28)),
    "pink": ((240, 160, 185), (240, 160, 185)),
    "striped": ((52, 60, 66), (96, 104, 110)),
    "gradient": ((16, 70, 74), (120, 120, 160)),
}
"""Name -> two colours; they differ for the textured ("striped") and the graded ("gradient") one."""
