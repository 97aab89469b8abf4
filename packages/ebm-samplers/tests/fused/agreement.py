"""The two engines side by side."""

import torch

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


def both(make, **arguments):
    """Results of the two engines."""
    arguments = {"x_init": X, "n_steps": 6, "keep": "trajectory", "seed": 2, **arguments}
    return [make(engine).sample(**arguments) for engine in ("torch", "fused")]


def assert_agree(a, b, atol=2e-5):
    for x, y in ((a.final, b.final), (a.trajectory, b.trajectory), (a.potential, b.potential)):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            assert torch.allclose(x, y, atol=atol, rtol=1e-4)
    assert a.stats.keys() == b.stats.keys()
    for name, value in a.stats.items():
        assert value.dtype == b.stats[name].dtype, name
        assert value.shape == b.stats[name].shape, name
        assert torch.allclose(value.double(), b.stats[name].double(), atol=atol, rtol=1e-4), name
