"""Learn the density of handwritten digits by persistent contrastive divergence, and sample it.

Chains of 4000 steps beside a floor, held-out images, and ceilings: shuffled pixels, uniform noise.
"""

import argparse
import os
import time
from multiprocessing import get_context

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from ebm_losses import PersistentContrastiveDivergence
from ebm_models import ConvEnergy
from ebm_samplers import MALA
from ebm_utils import fit, mmd, plot_images, plot_training

NOISE = 0.25  # standard deviation of the noise on data, whose pixels are from -1 to 1
CHAINS = 128
ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
IMAGES = torch.from_numpy(load_digits().images).float().unsqueeze(1)[ORDER] / 8 - 1
TRAIN, REFERENCE, HELD_OUT = IMAGES.split((1400, 269, CHAINS))


def judge(name, x):
    """A row: distance to the nearest training image, MMD² to others, the nearest ones' classes."""
    distances, nearest = torch.cdist(x.flatten(1), TRAIN.flatten(1)).min(1)
    squared = mmd(x, REFERENCE + NOISE * torch.randn_like(REFERENCE), bandwidth=3.0)
    classes = torch.from_numpy(load_digits().target)[ORDER][nearest].bincount(minlength=10)
    return f"{name:<26}{distances.mean():8.2f}{squared:10.4f}   {classes.tolist()}"


def run(seed, n_steps, n_transitions):
    """Train; then go on with the chains of training, and begin others from noise."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    energy = ConvEnergy((1, 8, 8), (32, 64), base_scale=1.0)
    sampler = MALA(energy, step_size=0.005, target_acceptance=0.6)
    loss_fn = PersistentContrastiveDivergence(energy, sampler, 10, buffer_size=CHAINS, jitter=NOISE)
    settings = {"learning_rate": 1e-3, "schedule": "cosine", "max_gradient_norm": 10.0}
    began = time.perf_counter()
    result = fit(loss_fn, TRAIN, n_steps=n_steps, batch_size=CHAINS, ema_decay=0.999, **settings)
    minutes = (time.perf_counter() - began) / 60
    gaps = [f"{gap.mean():.1f}" for gap in torch.tensor(result.history["energy_gap"]).chunk(5)]
    line = f"seed {seed}: {minutes:.1f} minutes; energy gap by fifths of it {', '.join(gaps)}"
    trained = loss_fn.buffer.states.clone()
    chains = MALA(result.energy, step_size=sampler.step_size)  # the energy of averaged parameters
    start = torch.cat((trained, torch.randn(CHAINS, 1, 8, 8)))
    on, anew = chains.sample_chain(start, n_transitions).split(CHAINS)
    images = {"chains of training": trained, "4000 steps on": on, "4000 steps from noise": anew}
    return line, result.history["energy_gap"], images


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", default="digits.png", help="the picture")
    options = parser.parse_args()
    jobs = [(seed, *((15, 15) if options.quick else (1500, 4000))) for seed in options.seeds]
    with get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        outcomes = pool.starmap(run, jobs[:1] if options.quick else jobs, chunksize=1)

    noisy = HELD_OUT + NOISE * torch.randn_like(HELD_OUT)
    pixels = [pixel[torch.randperm(CHAINS)] for pixel in noisy.flatten(1).T]
    print("                           nearest      MMD²   classes of the nearest, 0 to 9")
    print(judge("held-out images", noisy))
    print(judge("shuffled pixels", torch.stack(pixels, 1).view_as(noisy)))
    print(judge("uniform noise", torch.rand_like(noisy) * 2 - 1))
    for line, _, images in outcomes:
        print(line, *(judge("  " + name, x) for name, x in images.items()), sep="\n")

    figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), layout="constrained")
    _, gap, images = outcomes[0]
    images = {"held out, with noise": noisy, **images}
    for ax, (title, x) in zip(axes, images.items(), strict=False):
        plot_images(x[:64], limits=(-1, 1), title=title, ax=ax)
    plot_training({"energy gap": gap}, window=30, ax=axes[4])
    figure.savefig(options.out, dpi=120)
