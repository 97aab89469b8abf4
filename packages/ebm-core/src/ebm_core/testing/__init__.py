"""What a component, ours or yours, is tested with: conformance suites and two reference objects.

A suite is a class of pytest tests. Subclass it, name the subclass ``Test…``, and give the fixture
that its docstring asks for; tolerances are class attributes. pytest itself is not imported here.

Example:
    A third party's energy, tested in four lines::

        class TestMyEnergy(EnergyConformance):
            @pytest.fixture
            def energy(self):
                return MyEnergy()
"""

from ebm_core.testing.energies import EnergyConformance, ModelConformance
from ebm_core.testing.losses import LossConformance
from ebm_core.testing.reference import QuadraticEnergy, ReferenceLangevin
from ebm_core.testing.samplers import BaseSamplerConformance, SamplerConformance

__all__ = [
    "BaseSamplerConformance",
    "EnergyConformance",
    "LossConformance",
    "ModelConformance",
    "QuadraticEnergy",
    "ReferenceLangevin",
    "SamplerConformance",
]
