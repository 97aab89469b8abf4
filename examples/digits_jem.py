"""A classifier of handwritten digits that is an energy too (JEM), beside a plain classifier.

Chains of 4000 steps stand beside held-out images (floor), shuffled pixels and noise (ceilings).
"""

import argparse
import os
import time
from multiprocessing import get_context

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from ebm_losses import JointEnergyLoss
from ebm_models import ClassifierEnergy, ConvNetwork
from ebm_samplers import MALA
from ebm_utils import auroc, expected_calibration_error, fit, mmd, plot_images

NOISE = 0.25  # standard deviation of the noise on data, whose pixels are from -1 to 1
CHAINS = 128
ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
X = torch.from_numpy(load_digits().images).float().unsqueeze(1)[ORDER] / 8 - 1
Y = torch.from_numpy(load_digits().target)[ORDER]
X_TRAIN, X_TEST, Y_TRAIN, Y_TEST = X[:1400], X[1400:], Y[:1400], Y[1400:]


def noisy(x):
    """Images as the energy sees them."""
    return x + NOISE * torch.randn_like(x)


def judge(name, energy, score):
    """Classification of held-out images, and what tells flipped ones from them (AUROC)."""
    with torch.no_grad():
        p = energy.logits(X_TEST).softmax(1)
        nats = cross_entropy(energy.logits(X_TEST), Y_TEST)
        flips = [auroc(score(X_TEST.flip(axis)), score(X_TEST)) for axis in (-2, -1)]
    accuracy, ece = (p.argmax(1) == Y_TEST).float().mean(), expected_calibration_error(p, Y_TEST)
    return f"{name:<24} {accuracy:8.3f} {ece:8.3f} {nats:8.3f} {flips[0]:8.3f} {flips[1]:8.3f}"


def likeness(name, x):
    """Distance to the nearest training image; MMD² to held-out ones."""
    distances = torch.cdist(x.flatten(1), X_TRAIN.flatten(1)).min(1).values
    return f"{name:<24} {distances.mean():8.2f} {mmd(x, noisy(X_TEST[CHAINS:]), bandwidth=3.0):8.4f}"


def run(seed, n_steps, n_transitions):
    """Train the network twice, as a classifier and as an energy too; go on with the chains."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    plain, joint = (
        ClassifierEnergy(ConvNetwork((1, 8, 8), (32, 64), n_outputs=10), 10, base_scale=1.0)
        for _ in range(2)
    )
    sampler = MALA(joint, step_size=0.005, target_acceptance=0.6)
    loss_fn = JointEnergyLoss(joint, sampler, k_steps=10, buffer_size=CHAINS, jitter=NOISE)
    ...
