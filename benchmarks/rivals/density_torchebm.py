"""TorchEBM in `benchmarks/density.py` and `benchmarks/training.py`: its losses of the same network.

It has no accept step, noise-contrastive estimation, energy discrepancy or tempering.
"""

from typing import Any

import torchebm.core as core
from torch import Tensor, nn
from torchebm import losses
from torchebm.samplers import LangevinDynamics

from rivals.density_cells import DSM_NOISE
from rivals.density_training import work


class Model(core.BaseModel):
    """A network as its energy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """E(x)."""
        energy: Tensor = self.network(x)
        return energy


def contrastive(network: nn.Module, form: dict[str, Any], persistent: bool) -> Any:
    """CD-10 or PCD-10 without its regulariser of energies, by its Langevin sampler."""
    model = Model(network)
    options = {name: value for name, value in form.items() if name != "step_size"}
    sampler = LangevinDynamics(model, step_size=form["step_size"])
    loss = losses.ContrastiveDivergence(
        model,
        sampler,
        k_steps=10,
        persistent=persistent,
        init_steps=0,
        energy_reg_weight=0.0,
        **options,
    )
    return lambda x: loss(x)[0], network.parameters()


def score(network: nn.Module, kind: str, **options: Any) -> Any:
    """One of its score-matching losses."""
    loss = getattr(losses, kind)(Model(network), **options)
    return loss, network.parameters()


BUILDERS = {
    "CD-10": lambda network, form: contrastive(network, form, persistent=False),
    "PCD": lambda network, form: contrastive(network, form, persistent=True),
    "score matching": lambda network, form: score(network, "ScoreMatching", **form),
    "sliced score matching": lambda network, form: score(network, "SlicedScoreMatching", **form),
    "denoising score matching": lambda network, form: score(
        network, "DenoisingScoreMatching", noise_scale=DSM_NOISE, **form
    ),
}

if __name__ == "__main__":
    work(BUILDERS, ("torchebm", "torch"))
