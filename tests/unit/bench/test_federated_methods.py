"""What the peers of the federated comparison do to models, in numbers."""

import pytest

from dlfd_fleet.bench.fleets.methods import lengthening


@pytest.mark.parametrize(
    ("then", "now", "epochs", "factor"),
    [
        (3.0, 1.5, 2.0, 2.0),  # twice the epochs, twice as far
        (1.0, 2.0, 2.0, 0.5),  # an update may be shortened by any factor
        (4.0, 1.0, 2.0, 4.0),
        (44.6, 1.0, 1.0, 1.0),  # a site with one batch left, and as many epochs as then
        (44.6, 1.0, 2.0, 4.0),
        (1.0, 0.0, 2.0, 4.0),  # no direction at all
    ],
)
def test_eraser_lengthens_no_update_beyond_what_the_longer_training_could_do(then, now, epochs, factor):
    assert lengthening(then, now, epochs) == pytest.approx(factor)
