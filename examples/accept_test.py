"""What the accept test does for persistent contrastive divergence: one step size, with and without.

python examples/accept_test.py 1000
"""

import sys

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from ebm_losses import PersistentContrastiveDivergence
from ebm_models import MLPEnergy
from ebm_samplers import MALA, LangevinDynamics
from ebm_utils import TwoMoons, exact_kl


def main(n_steps):
    """Train on two moons with each sampler; all else, the seed included, is the same."""
    torch.set_num_threads(1)
    data = TwoMoons(1)
    for kind in (LangevinDynamics, MALA):
        torch.manual_seed(0)
        model = MLPEnergy(2, hidden=(64, 64, 64), base_scale=2.0, input_gain=4.0)
        chains = kind(model, step_size=0.01)
        loss_fn = PersistentContrastiveDivergence(model, chains, k_steps=10, buffer_size=512)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        schedule = CosineAnnealingLR(optimizer, 1500, eta_min=1e-5)
        for step in range(1, n_steps + 1):
            optimizer.zero_grad()
            loss_fn(data.sample(512)).backward()
            optimizer.step()
            schedule.step()
            if step % max(1, n_steps // 5) == 0:
                kl = exact_kl(
                    model,
                    data.log_density,
                    [(-10.0, 10.0)] * 2,
                    100,
                    max_grid_error=None,  # a model that runs away is shown, not refused
                    max_outside_mass=None,
                )
                print(f"{kind.__name__}, step {step}: KL(data || model) {kl:.3g} nats")


if __name__ == "__main__":
    main(n_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 20)
