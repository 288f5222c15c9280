"""A search under a schedule beside lost rates: what it tries there is not taken from what it tries elsewhere."""

import jax.numpy as jnp
import numpy as np
import optax

import optax_lr as olr

HORIZON = 40
EDGE = 0.3


def grows(params, batch):
    """A loss whose gradient is -1, so that parameters end at the sum of the rates."""
    return jnp.sum(batch) - params


def bowl_with_an_edge(params, batch):
    """Lowest where the rates add up to 1, steep above, and lost from exp(0.3) on."""
    x = jnp.log(jnp.maximum(params, 1e-9)) + 0 * jnp.sum(batch)
    return jnp.where(x > EDGE, jnp.nan, jnp.where(x > 0, 5 * x, 0.1 * x**2))


def test_rates_tried_beside_a_lost_one_are_no_refinements_of_the_best():
    batches = np.zeros((HORIZON, 1), np.float32)
    found = olr.lr_find(
        grows, jnp.zeros(()), optax.sgd, batches, eval_batch=batches[0], eval_fn=bowl_with_an_edge,
        horizon=HORIZON, schedule=optax.constant_schedule, num_steps=8, seeds=2, progress=False,
    )  # fmt: skip
    x = np.log(found.learning_rate * HORIZON)
    assert 0.1 * x**2 < 0.005 and x <= 0
    # One beside the lost rate, and then two half way to the lanes beside the best.
    tried = found.finalists
    best, lost = olr.suggest.best_lane(tried), np.isnan(tried.eval_losses[..., -1]).any(axis=0)
    assert lost[-1] and not lost[:-1].any() and len(tried.learning_rates) >= 3 + 1 + 2
    assert tried.learning_rates[best] / tried.learning_rates[best - 1] < np.sqrt(3)
