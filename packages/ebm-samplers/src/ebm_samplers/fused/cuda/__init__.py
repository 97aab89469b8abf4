"""The fused engine on CUDA: the kernels of the CPU, a thread a chain.

The program of an energy and the text of a sampler's kernel are those of the CPU; a tile has one
lane. What differs stands here: how a thread finds its chain and its memory (`source`), the
functions that kernels call (`device`), `numba.cuda` itself (`_backend`), compiling and launching
(`kernel`, `launch`), energies whose numbers are CUDA tensors (`energy`, `parameters`), and numbers
straight into tensors (`noise`).

Arrays of states and results lie with the chains along the last axis, so that neighbouring threads
touch neighbouring numbers.
"""
