"""The functions of `kernels.noise`, compiled once for all kernels with tiles of one form.

Kernels link them as they are, which halves the time to compile a kernel. Numba's cache would not
notice changes in functions that they call, so that `ebm_samplers.philox` and they are kept as one
generated module. Numba compiles them anew for other constants ``plane`` and ``shift``, rightly:
without knowing these LLVM finds no SIMD code, a third of the speed.
"""

from pathlib import Path

from ebm_samplers import philox
from ebm_samplers.fused import cache
from ebm_samplers.fused.kernels import compiled_text

_module = cache.load(Path(philox.__file__).read_text() + "\n\n" + compiled_text("noise"))

fill_words = _module.fill_words
fill_normals_float32 = _module.fill_normals_float32
fill_normals_float64 = _module.fill_normals_float64
fill_uniforms = _module.fill_uniforms
