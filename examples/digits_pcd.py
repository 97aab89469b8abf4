"""Learn the density of handwritten digits by persistent contrastive divergence, and sample it.

    python examples/digits_pcd.py [--seeds 0 1 2] [--quick] [--out digits.png]

Prints how alike chains of 4000 steps are to digits, beside a floor and two ceilings (digits.py).
"""

import time

import matplotlib.pyplot as plt
import torch
from digits import NOISE, TRAIN, course, each_seed, likeness, references

from ebm_losses import PersistentContrastiveDivergence
from ebm_models import ConvEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo
from ebm_utils import fit, plot_images, plot_training

CHAINS = 128


def run(seed, n_steps, n_transitions):
    """Train with all chains moving at each step; then go on with them, and begin others anew."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    energy = ConvEnergy((1, 8, 8), (32, 64, 64), base_scale=1.0)
    sampler = HamiltonianMonteCarlo(
        energy, step_size=0.05, n_leapfrog_steps=5, target_acceptance=0.7
    )
    loss_fn = PersistentContrastiveDivergence(
        energy, sampler, k_steps=2, buffer_size=CHAINS, jitter=NOISE
    )
    began = time.perf_counter()
    result = fit(
        loss_fn,
        TRAIN,
        n_steps=n_steps,
        batch_size=CHAINS,
        learning_rate=1e-3,
        schedule="cosine",
        max_gradient_norm=10.0,
        ema_decay=0.999,
    )
    minutes = (time.perf_counter() - began) / 60
    return go_on(result.energy, loss_fn.buffer, n_transitions), result.history, minutes


def go_on(energy, buffer, n_transitions):
    """Images of the chains of training, before and after more steps, and of chains from noise."""
    chains = MALA(energy, step_size=0.02)
    start = torch.cat((buffer.states, torch.randn(CHAINS, 1, 8, 8)))
    further, anew = chains.sample_chain(start, n_transitions).split(CHAINS)
    return {"chains of training": buffer.states, "4000 steps on": further, "4000 from noise": anew}


def main():
    """All seeds; the figures; a picture of the first."""
    outcomes, path = each_seed(run, "digits.png")
    print(likeness(references()))
    for seed, (images, history, minutes) in outcomes.items():
        print(f"\nseed {seed}: {minutes:.1f} minutes; {course(history)}")
        print(likeness(images))

    images, history, _ = next(iter(outcomes.values()))
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), layout="constrained")
    shown = {"held out, with noise": references()["held-out images"], **images}
    for ax, (name, x) in zip(axes, shown.items(), strict=False):
        plot_images(x[:64], limits=(-1, 1), title=name, ax=ax)
    plot_training({"energy gap": history["energy_gap"]}, window=30, title="nats", ax=axes[4])
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
