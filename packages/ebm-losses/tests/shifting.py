"""A sampler that any energy does for."""


class Shift:
    """Adds `by` for each step."""

    def __init__(self, by=1.0):
        self.by = by
        self.calls = []

    def sample_chain(self, x_init, n_steps):
        self.calls.append((x_init.clone(), n_steps))
        return x_init + self.by * n_steps
