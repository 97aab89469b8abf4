"""What benchmarks share: the run and its results, worker processes, the tables."""
