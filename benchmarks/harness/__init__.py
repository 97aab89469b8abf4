"""What benchmarks share: worker processes, and the description of the machine."""
