"""Digits of 8 × 8 pixels for digits_pcd.py and digits_jem.py, and what images are judged by.

Run by itself, it prints the figures of a floor, held-out images, and of two ceilings.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from sklearn.datasets import load_digits

from ebm_utils import mmd

NOISE = 0.25  # standard deviation of the noise on images, whose pixels are from -1 to 1
ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
IMAGES = torch.from_numpy(load_digits().images).float().unsqueeze(1)[ORDER] / 8 - 1
LABELS = torch.from_numpy(load_digits().target)[ORDER]
TRAIN, TEST = IMAGES[:1400], IMAGES[1400:]


def noisy(images):
    """Images as the energies see them: a density needs more than 17 grey values."""
    return images + NOISE * torch.randn_like(images)


def references(n=128):
    """Held-out images; the same with pixels shuffled among images; uniform noise."""
    held_out = noisy(TEST[:n])
    shuffled = torch.stack([pixel[torch.randperm(n)] for pixel in held_out.flatten(1).T], 1)
    shuffled, uniform = shuffled.view_as(held_out), 2 * torch.rand_like(held_out) - 1
    return {"held-out images": held_out, "shuffled pixels": shuffled, "uniform noise": uniform}


def likeness(images):
    """A row of figures for each of several sets of images, by name.

    The mean distance to the nearest training image; the squared MMD to held-out images that are
    not among the references; and to how many training images of each class they are nearest.
    """
    torch.manual_seed(0)
    rows = [f"{'':<28}nearest     MMD²   classes of the nearest, 0 to 9"]
    for name, x in images.items():
        distances, nearest = torch.cdist(x.flatten(1), TRAIN.flatten(1)).min(1)
        far = mmd(x, noisy(TEST[128:]), bandwidth=3.0)  # half of the median distance of two images
        classes = LABELS[nearest].bincount(minlength=10).tolist()
        rows.append(f"{name:<28}{distances.mean():7.2f} {far:8.4f}   {classes}")
    return "\n".join(rows)


def course(history):
    """The mean energy gap of training, in nats, by fifths of its steps."""
    gaps = torch.tensor(history["energy_gap"]).chunk(5)
    return "energy gap " + " ".join(f"{gap.mean():.1f}" for gap in gaps)


def each_seed(run, out):
    """By seed, what ``run(seed, n_steps, n_transitions)`` gives, a process each; where to draw.

    Reads ``--seeds``, ``--quick`` and ``--out`` from the command line.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--out", default=out, help="the picture")
    options = parser.parse_args()
    lengths, seeds = ((15, 15), [0]) if options.quick else ((1200, 4000), options.seeds)
    workers = min(len(seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = {seed: pool.submit(run, seed, *lengths) for seed in seeds}
        return {seed: future.result() for seed, future in pending.items()}, options.out


if __name__ == "__main__":
    print(likeness(references()))
