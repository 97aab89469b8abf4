"""Unadjusted Langevin; see `ebm_samplers.langevin.LangevinDynamics` for the step in torch."""

from .tile import *  # noqa: F403

# compiled ---------------------------------------------------------------------------------------

OWN_ROWS = FREE - OWN


@entry
def chains(p, offset, state, beta, step_size, scale, lengths, mass, root, key, first_chain, first_step, fresh, thin,
           draws, statistics, first_tile, last_tile):  # type: ignore[no-untyped-def]
    w = np.zeros((ROWS + OWN_ROWS) * L, real)
    words = np.empty(4 * PLANE, np.uint32)
    z = np.empty(4 * PLANE, real)
    last_step = first_step + len(step_size)
    for tile in range(first_tile, last_tile):
        enter(w, X, state, tile)
        enter(w, BETA, beta, tile)
        step = first_step
        while step < last_step:
            stop = min((step // CHUNK + 1) * CHUNK, last_step)
            block = step * D >> 2
            n_blocks = (stop * D + 3 >> 2) - block
            fill_words(words, PLANE, SHIFT, first_chain + tile * L, block, n_blocks, NOISE, key)
            fill_normals(z, words, PLANE, n_blocks * L)
            while step < stop:
                now = step - first_step
                gradient(w, p)
                h = real(step_size[now])
                s = real(math.sqrt(2.0 * step_size[now]) * scale[now])
                for i in range(D):
                    n = step * D + i - 4 * block
                    at = (n & 3) * PLANE + (n >> 2) * L
                    for lane in range(L):
                        drift = h * (w[BETA * L + lane] * w[(G + i) * L + lane])
                        w[(X + i) * L + lane] = w[(X + i) * L + lane] - drift + s * z[np.uint64(at + lane)]
                step += 1
                if (now + 1) % thin == 0:
                    energy(w, p)
                    watch(w, E, offset)
                    flag_infinite(w)
                    if draws.shape[1] > 0:
                        record(w, X, draws, tile, now // thin)
                    record(w, POTENTIAL, statistics, tile, now // thin)
        if fresh:
            energy(w, p)
            gradient(w, p)
        for lane in range(min(L, len(state) - tile * L)):
            for i in range(2 * D + 1):
                state[tile * L + lane, i] = w[(X + i) * L + lane]


@compiled
def flag_infinite(w):  # type: ignore[no-untyped-def]
    for lane in range(L):
        total = w[E * L + lane]
        for i in range(D):
            total += w[(X + i) * L + lane]
        w[WILD * L + lane] = real(0) if abs(total) < real(np.inf) else real(1)
