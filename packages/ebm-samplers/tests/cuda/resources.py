"""What each kernel takes on a device, found without one: `nox -s ptx -- --record` writes the table.

Kernels are compiled to PTX by numba.cuda and to machine code by nvJitLink, which says how many
registers each needs, how much of the stack, and what it has to spill.
"""

import functools
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fused"))

from targets import TARGETS, dense_gaussian, funnel

from ebm_core import as_energy
from ebm_samplers.fused.cuda import device
from ebm_samplers.fused.cuda._backend import numba_cuda
from ebm_samplers.fused.cuda.energy import CudaEnergy

TABLE = Path(__file__).with_name("resources.json")
PAGE = Path(__file__).parents[4] / "docs" / "cuda.md"
ARCHITECTURES = ("sm_80", "sm_90")
SAMPLERS = ("energy", "langevin", "underdamped", "mala", "hmc", "nuts")
PLANE = ("double well", "rosenbrock", "mixture")  # in two dimensions, straight-line
ENERGIES = {
    **{name: TARGETS[name] for name in (*PLANE, "images", "perceptron")},
    "funnel": (lambda dtype: funnel, (10,)),
    "powers": (lambda dtype: lambda x: ((0.4 * x) ** 18).sum(1), (2,)),
    "dense gaussian": (lambda dtype: dense_gaussian(100, dtype), (100,)),
}


@dataclass(frozen=True)
class Resources:
    """What a kernel takes.

    Attributes: registers: Of a thread. stack: Bytes of local memory that it indexes. spills: Bytes
        that it stores for want of registers. code: Bytes of the whole object. doubles: Operations
        on float64. guards: Comparisons with infinity in the PTX.
    """

    registers: int
    stack: int
    spills: int
    code: int
    doubles: int
    guards: int


class AnyDevice(CudaEnergy):
    """For states on the CPU: only compiled, never run."""

    def runs_on(self, device):
        return True


@functools.cache
def resources(name, sampler, dtype=torch.float32):
    """Compile a kernel: what it takes, by architecture."""
    make, shape = ENERGIES[name]
    fused = AnyDevice(as_energy(make(dtype)), torch.zeros(1, *shape, dtype=dtype))
    kernel = fused.make_kernel(sampler, 1)
    double = dtype == torch.float64
    arguments = device.signature(kernel.arguments, double).args
    ptx = ptx_of(kernel.space["chains"], arguments)
    return {arch: linked(ptx, arch) for arch in ARCHITECTURES}


NOISE = {
    "normals": ("fill", False),
    "uniforms": ("fill", True),
    "placed-normals": ("fill_placed", False),
    "placed-uniforms": ("fill_placed", True),
    "move": ("move", False),
}
"""The kernels for the torch engine: what they are called, and whether uniforms are wanted."""


@functools.cache
def noise_resources(kind):
    """What those take."""
    from ebm_samplers.fused.cuda import noise

    name, uniform = NOISE[kind]
    function = noise.kernel_function(name, False, uniform)
    arguments = device.signature(noise.ARGUMENTS[name], False).args
    ptx = ptx_of(function, arguments, fastmath=device.STRICT)
    return {arch: linked(ptx, arch) for arch in ARCHITECTURES}


def ptx_of(function, arguments, capability=(8, 0), fastmath=device.FAST):
    """A function in the language of devices of this capability and later ones."""
    dispatcher = sys.modules["numba.cuda.dispatcher"]
    kept = dispatcher.get_current_device  # device functions ask for it, though it does not matter
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        ptx, _ = numba_cuda().compile_ptx(
            function, tuple(arguments), cc=capability, fastmath=fastmath
        )
    finally:
        dispatcher.get_current_device = kept
    return ptx


def linked(ptx, arch):
    """Its machine code for an architecture, and what that takes."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=arch, ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    code = linker.link("cubin").code
    log = linker.get_info_log()

    def number(pattern):
        return int(re.search(pattern, log).group(1))

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
        len(code),
        len(re.findall(r"\.f64\b", ptx)),
        len(re.findall(r"0f7F800000|0d7FF0000000000000", ptx)),
    )


def everything():
    """All kernels, by architecture, energy and sampler."""
    found = {
        f"{arch} {name} {sampler}": asdict(taken)
        for name in ENERGIES
        for sampler in SAMPLERS
        for arch, taken in resources(name, sampler).items()
    }
    for kind in NOISE:
        for arch, taken in noise_resources(kind).items():
            found[f"{arch} none {kind}"] = asdict(taken)
    return found


def page(taken):
    """The table of the docs: sm_90."""
    lines = [
        "| energy | kernel | registers | stack, bytes | spilled, bytes | code, KiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for key, row in taken.items():
        arch, *name, sampler = key.split()
        if arch == ARCHITECTURES[-1]:
            numbers = row["registers"], row["stack"], row["spills"], f"{row['code'] / 1024:.0f}"
            lines.append(f"| {' '.join(name)} | {sampler} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def record():
    """Write the limits, and the docs' table."""
    taken = everything()
    TABLE.write_text(json.dumps(taken, indent=1) + "\n")
    begin, end = (f"<!-- resources: {word} -->" for word in ("begin", "end"))
    text = PAGE.read_text()
    start, stop = text.index(begin) + len(begin), text.index(end)
    PAGE.write_text(f"{text[:start]}\n\n{page(taken)}\n\n{text[stop:]}")


if __name__ == "__main__":
    record()
