"""Draws the data set of tests/tiny/hardnet.yaml: coloured stripes in six directions."""

import cv2
import numpy as np

CLASSES, TRAIN, VAL, SIDE = 6, 12, 5, 40


def stripes(rng, angle):
    """A uint8 (40, 40, 3) image of stripes in direction `angle` (radians), phase and colour by chance."""
    y, x = np.mgrid[:SIDE, :SIDE]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.8 + rng.uniform(0, 6))
    image = 128 + wave[..., None] * rng.uniform(50, 110, 3) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def make(folder):
    """Write train/ and val/ into `folder`; returns the keys that name it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(CLASSES):
            target = folder / split / f"class{number}"
            target.mkdir(parents=True)
            for index in range(count):
                ending = ".png" if index % 3 == 0 else ".jpg"
                image = stripes(rng, np.pi * number / CLASSES)
                assert cv2.imwrite(str(target / f"{index:02d}{ending}"), image)
    return {"dataset_path": folder}
