"""Generate a short clip from an installed wheel, away from the checkout, and read it back.

Usage: python wheel_check.py CHECKOUT (the folder that nothing may be imported from).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import wanlab
from wanlab.files import resource


def main(checkout: Path) -> None:
    """Raise if the wheel is not complete or its result does not survive the disk."""
    home = Path(wanlab.__file__).resolve()
    assert checkout.resolve() not in home.parents, f"imported from the checkout: {home}"
    for parts in (("defaults", "wan_tiny.json"), ("notebooks", "quickstart.ipynb")):
        assert resource(*parts).is_file(), parts
    model = wanlab.load("wan_tiny", device="cpu")
    spec = model.spec(prompt="a red circle moves right on a black background", seed=7, num_steps=4, num_frames=9)
    clip = wanlab.generate(model, spec)
    clip.save("clip.mp4")
    clip.save("run")
    for path in ("clip.mp4", "run"):
        again = wanlab.open_result(path)
        assert again.spec == clip.spec, path
        assert again.frames.shape == clip.frames.shape, path
        assert np.abs(again.frames.astype(float) - clip.frames).mean() < 8, path  # H.264 loses a little
    print(clip, clip.seconds)


main(Path(sys.argv[1]))
