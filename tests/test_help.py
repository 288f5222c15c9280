"""`help()` of what is taught names where it does not hold."""

import pydoc
import re

import pytest

import optax_lr as olr

CAVEATS = [
    (olr.scale_by_rprop, "for full batches"),
    (olr.rprop, "not for mini-batches"),
    (olr.scale_by_local_gains, "turned by 45 degrees stays as slow as it was"),
    (olr.scale_by_local_gains, "for full batches"),
    (olr.scale_by_delta_bar_delta, "turned by 45 degrees stays as slow as it was"),
    (olr.local_gains, "turned by 45 degrees stays slow"),
    (olr.local_gains, r"full batches, or large mini-batches"),
    (olr.scale_by_delta_bar_delta, "full batches"),
    (olr.local_gains, r"a rate found without momentum is ten times too high"),
    (olr.one_cycle_momentum_schedule, "Momentum moves the best rate"),
    (olr.cyclical_momentum_schedule, "Momentum moves the best rate"),
    (olr.rescale_for_batch, "For small batches it is too steep"),
    (olr.compare, "At one common rate the order of optimizers says which of them that rate suits"),
    (olr.lr_range_test, "far more accurate: a ramp mixes the effect of a rate with that of all before it"),
    (olr.lr_refind, "A short look ahead favors small rates"),
    (olr.top_curvature, "for them it says little"),
    (olr.suggest.largest_stable, "has not learned"),
    (olr.suggest.halve_until_stable, "a network may be dead"),
    (olr.suggest.cyclical_bounds, "A ramp shows that rate too late"),
]


@pytest.mark.parametrize(("function", "caveat"), CAVEATS, ids=lambda each: getattr(each, "__name__", ""))
def test_help_names_the_caveat(function, caveat):
    text = re.sub(r"\s+", " ", pydoc.plain(pydoc.render_doc(function)))
    assert re.search(caveat, text)
