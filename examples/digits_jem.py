"""A classifier of handwritten digits that is an energy as well (JEM), beside a plain classifier.

    python examples/digits_jem.py [--seeds 0 1 2] [--quick] [--out classifier.png]

Prints accuracy, calibration, how well flipped digits are told from digits, and how alike chains of
4000 steps are to digits, beside a floor and two ceilings (digits.py).
"""

import time

import matplotlib.pyplot as plt
import torch
from digits import LABELS, NOISE, TEST, TRAIN, course, each_seed, likeness, noisy, references
from digits_pcd import CHAINS, go_on
from torch.nn.functional import cross_entropy

from ebm_losses import JointEnergyLoss
from ebm_models import ClassifierEnergy, ConvNetwork
from ebm_samplers import HamiltonianMonteCarlo
from ebm_utils import auroc, expected_calibration_error, fit, plot_images


def classify(energy, score):
    """Figures on held-out images; flipped up-down, then left-right, have they higher scores?"""
    targets = LABELS[len(TRAIN) :]
    with torch.no_grad():
        logits = energy.logits(TEST)
        flips = [auroc(score(TEST.flip(axis)), score(TEST)) for axis in (-2, -1)]
    right, p = (logits.argmax(1) == targets).float().mean(), logits.softmax(1)
    figures = (right, expected_calibration_error(p, targets), cross_entropy(logits, targets))
    return "".join(f"{float(figure):9.3f}" for figure in (*figures, *flips))


def run(seed, n_steps, n_transitions):
    """Train by cross-entropy alone, then jointly; go on with the latter's chains, and others."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    networks = [ConvNetwork((1, 8, 8), (32, 64, 64), n_outputs=10) for _ in range(2)]
    plain, energy = (ClassifierEnergy(net, 10, (1, 8, 8), base_scale=1.0) for net in networks)
    sampler = HamiltonianMonteCarlo(energy, 0.05, n_leapfrog_steps=5, target_acceptance=0.7)
    joint = JointEnergyLoss(energy, sampler, k_steps=2, buffer_size=CHAINS, jitter=NOISE)
    data = (TRAIN, LABELS[: len(TRAIN)])
    settings = {"n_steps": n_steps, "schedule": "cosine", "max_gradient_norm": 10.0}
    fit(lambda x, y: cross_entropy(plain.logits(noisy(x)), y), data, parameters=plain, **settings)
    began = time.perf_counter()
    result = fit(joint, data, ema_decay=0.999, **settings)
    minutes = (time.perf_counter() - began) / 60

    learned = result.energy  # has the average of the parameters
    rows = {
        "  cross-entropy alone": classify(plain, lambda x: -plain.logits(x).softmax(1).amax(1)),
        "  joint": classify(learned, learned),
    }
    images = go_on(learned, joint.buffer, n_transitions)
    energies = {"digits": learned(TEST).detach(), "upside down": learned(TEST.flip(-2)).detach()}
    return rows, images, energies, result.history, minutes


def main():
    """All seeds; the figures; a picture of the first."""
    outcomes, path = each_seed(run, "classifier.png")
    print(likeness(references()))
    for seed, (rows, images, _, history, minutes) in outcomes.items():
        print(f"\nseed {seed}: {minutes:.1f} minutes; {course(history)}")
        print(f"{'':<22} accuracy      ECE     nats  up-down left-right")
        print(*(f"{name:<22}{row}" for name, row in rows.items()), likeness(images), sep="\n")

    _, images, energies, *_ = next(iter(outcomes.values()))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    plot_images(images["chains of training"][:64], limits=(-1, 1), title="chains", ax=axes[0])
    plot_images(images["4000 from noise"][:64], limits=(-1, 1), title="4000 from noise", ax=axes[1])
    axes[2].hist(list(energies.values()), bins=40, label=list(energies))
    axes[2].set(title="Energies of held-out images", xlabel="nats")
    axes[2].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
