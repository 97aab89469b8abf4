"""Train an energy by persistent contrastive divergence, and measure what it learned exactly."""

import sys

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from ebm_energies import Gaussian
from ebm_losses import NoiseContrastiveEstimation, PersistentContrastiveDivergence
from ebm_models import MLPEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo
from ebm_utils import EightGaussians, ess, exact_kl, rhat

BOX = [(-10.0, 10.0)] * 2


def train(loss_fn, data, n_steps):
    """Minimise a loss on fresh batches of 256; Adam, its rate following half a cosine."""
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-3)
    schedule = CosineAnnealingLR(optimizer, n_steps, eta_min=1e-5)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_fn(data.sample(256)).backward()
        optimizer.step()
        schedule.step()


def main(n_steps):
    """Train one network by each objective; print the divergence of each from the data."""
    torch.manual_seed(0)
    data = EightGaussians(1)
    networks = [MLPEnergy(2, base_scale=2.0, input_gain=4.0) for _ in range(2)]

    # An accept test keeps the chains on the model's own density; their step follows the model.
    chains = MALA(networks[0], step_size=0.01, target_acceptance=0.6)
    persistent = PersistentContrastiveDivergence(networks[0], chains, k_steps=10, buffer_size=256)
    noise = Gaussian(torch.zeros(2), covariance=4.0 * torch.eye(2))
    objectives = {
        "persistent contrastive divergence": persistent,
        "noise-contrastive estimation": NoiseContrastiveEstimation(networks[1], noise),
    }
    for name, objective in objectives.items():
        train(objective, data, n_steps)
        kl = exact_kl(objective.energy, data.log_density, BOX, 400)
        print(f"{name}: KL(data || model) = {kl:.4f} nats after {n_steps} steps")

    sampler = HamiltonianMonteCarlo(networks[1], step_size=0.1, n_leapfrog_steps=10)
    start = persistent.buffer.states[:64]
    result = sampler.sample(start, n_steps=200, keep="trajectory", seed=0)
    print(f"chains: R-hat {rhat(result).max():.2f}, ESS {ess(result).min():.0f}")


if __name__ == "__main__":
    main(n_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 200)
