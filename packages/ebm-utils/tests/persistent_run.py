"""A run with everything that a checkpoint must hold; as a script, it tells each step and is killed.

A loss with persistent chains, a sampler with a stream of its own, noise of the global generator, an
optimizer with moments, a schedule, an average, clipping, shuffled data.
"""

import sys

import torch

from ebm_core import BaseLoss, make_generator
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_utils import fit

N_STEPS = 300


class PersistentLoss(BaseLoss):
    def __init__(self, energy):
        super().__init__(energy)
        self.sampler = ReferenceLangevin(self.energy, step_size=0.05)
        self.register_buffer("chains", torch.zeros(16, 2))

    def compute(self, x):
        x = x + 0.05 * torch.randn_like(x)
        self.chains.copy_(self.sampler.sample_chain(self.chains, 2))
        loss = self.energy(x).mean() - self.energy(self.chains).mean()
        return loss, {"gap": -loss}

    def get_extra_state(self):
        return self.sampler.state_dict()

    def set_extra_state(self, state):
        self.sampler.load_state_dict(state)


def make_loss():
    torch.manual_seed(0)
    return PersistentLoss(QuadraticEnergy(torch.ones(2), torch.full((2,), 0.5)))


def run_data():
    return 0.5 * torch.randn(100, 2, generator=make_generator(1)) - 1.0


def run(loss, n_steps=N_STEPS, **options):
    settings = {
        "batch_size": 16,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "max_gradient_norm": 1.0,
        "ema_decay": 0.99,
        "seed": 3,
        "checkpoint_every": 7 if "checkpoint" in options else None,
    }
    return fit(loss, run_data(), n_steps=n_steps, **{**settings, **options})


def tell(step):
    print(step, flush=True)


if __name__ == "__main__":
    run(make_loss(), evaluate=tell, evaluate_every=1, checkpoint=sys.argv[1])
