import math

import pytest

from ebm_core import ConfigurationError
from ebm_samplers.schedules import Setting


def test_numbers_and_schedules():
    assert Setting("h", 2).at(7) == 2.0
    assert Setting("h", lambda step: 1 / step).at(2) == 0.5
    assert Setting("h", 0.0, zero=True).is_constant


@pytest.mark.parametrize("value", (0.0, -1.0, math.nan, math.inf, "0.1", None))
def test_wrong_values_are_refused(value):
    with pytest.raises(ConfigurationError, match="^h is"):
        Setting("h", value)
    with pytest.raises(ConfigurationError, match=r"^h\(3\) is"):
        Setting("h", lambda step: value if step == 3 else 1.0).at(3)
