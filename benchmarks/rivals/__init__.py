"""Workers of the benchmarks: each runs cells in the environment of one rival."""
