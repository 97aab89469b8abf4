"""What `benchmarks/training.py` measures; rivals and noise are those of `density_cells`.

Standard library only.
"""

from rivals import density_cells

SIDES = (*density_cells.SIDES, "products")
"""The last is a floor: see `training_products`."""
WIDTHS = (128, 128)
BATCH = 256
K_STEPS, STEP_SIZE = 10, 0.01
BUFFER = 10_000
LEARNING_RATE = 1e-4

OBJECTIVES = ("CD-10", "PCD-10", "DSM", "SSM", "NCE")
WANTED = {"CD-10": 3.0, "PCD-10": 3.0}
"""Times the faster rival's steps a second; 1 elsewhere."""
