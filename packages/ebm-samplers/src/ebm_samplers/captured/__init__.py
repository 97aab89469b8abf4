"""The torch engine on CUDA, without the host's share of it: steps that run as CUDA graphs.

A step of a small network is some twenty kernels of a few microseconds, and issuing each takes the
host longer than running it takes the device. Therefore steps are issued once, into a CUDA graph,
and the graph is launched again and again, in this call and the next ones: a training step of a
contrastive loss launches two graphs instead of some hundred kernels.

- `graph`: work on a device that can be repeated.
- `recording`: the memory that graphs of one sampler work in, and the graphs.
- `catalogue`: which recordings there are of each sampler, and for which chains they do.
- `chains`: chains that advance by launching graphs.

What a graph does is frozen: kernels, addresses, numbers. What changes lies in memory that it reads:
states, the place in the random streams, parameters of the energy, settings that vary. That frozen
parts still hold is checked at each call, as for kernels of the fused engine: the energies of the
start states are compared with ``forward``.
"""

from ebm_samplers.captured.catalogue import explained_graphs, graphs_wanted, without_graphs
from ebm_samplers.captured.chains import CapturedChains, captured_on, require_uncaptured
from ebm_samplers.captured.graph import CannotCapture

__all__ = [
    "CannotCapture",
    "CapturedChains",
    "captured_on",
    "explained_graphs",
    "graphs_wanted",
    "require_uncaptured",
    "without_graphs",
]
