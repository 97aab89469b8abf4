"""Programs run as plain Python, in float64, without compiling."""

import math

import numpy as np
from scipy import special

from ebm_samplers.fused import arithmetic
from ebm_samplers.fused.codegen import energy_function, offset_function
from ebm_samplers.fused.program import Product


def plain_product(n_inner, n_outputs, lanes):
    """What `tile_product` does, in plain Python."""

    def product(w, p, out, row, m):
        for j in range(n_outputs):
            for lane in range(lanes):
                total = w[row * lanes + lane] * p[m + j]
                for k in range(1, n_inner):
                    total += w[(row + k) * lanes + lane] * p[m + k * n_outputs + j]
                w[(out + j) * lanes + lane] = total

    return product


NAMES = {
    **{name: f"np.{name}" for name in ("exp", "log", "sin", "cos", "tanh", "log1p", "expm1")},
    **{name: f"np.{name}" for name in ("sqrt", "floor")},
    **{name: f"np.arc{name[1:]}" for name in ("atan", "asin", "acos")},
    "erf": "special.erf",
    "erfc": "special.erfc",
    "sigmoid": "special.expit",
    "softplus": "softplus",
}


def softplus(x):
    return np.logaddexp(0, x)


def interpreted(program, p, x, real=np.float64, lanes=2):
    """Energy and gradient of states, by the generated source."""
    space = {"np": np, "special": special, "softplus": softplus, "real": real, "L": 1}
    space |= {"math": math, "arithmetic": arithmetic}
    for nest in program.nests:
        if isinstance(nest, Product):
            size = (nest.n_inner, nest.n_outputs)
            space["product_{}_{}".format(*size)] = plain_product(*size, 1)
    functions = energy_function(program, NAMES, lanes) + offset_function(program)
    exec(functions, space)
    rows = []
    with np.errstate(all="ignore"):
        for state in x:
            w = np.zeros(program.n_rows, real)
            w[: len(state)] = state
            space["energy_and_gradient"](w, p)
            rows.append(w[len(state) : 2 * len(state) + 1])
    gradient, energy = np.split(np.array(rows), [x.shape[1]], 1)
    return energy[:, 0] + space["energy_offset"](p), gradient
