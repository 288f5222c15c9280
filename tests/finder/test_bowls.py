"""What gains and Rprop buy: steps down a quadratic, against momentum and `optax.rprop` at their best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

DIMENSIONS = 20
EIGENVALUES = np.geomspace(1.0, 1e4, DIMENSIONS)
RATES = jnp.geomspace(2e-5, 2e-3, 33)


def bowls():
    """Matrices and starts: one along the axes, and six rotations of it and of its start."""
    random = [np.random.default_rng(seed).normal(size=(DIMENSIONS, DIMENSIONS)) for seed in range(6)]
    turns = [np.eye(DIMENSIONS)] + [np.linalg.qr(matrix)[0] for matrix in random]
    matrices = [turn @ np.diag(EIGENVALUES) @ turn.T for turn in turns]
    return jnp.array(matrices, float), jnp.array([turn.sum(1) for turn in turns], float)


@functools.partial(jax.jit, static_argnames="make")
def steps_needed(make, numbers, matrices, starts):
    """Steps until x'Ax/2 is 1e-6 of its start, [bowls, numbers]; 2000 where it never is."""

    def descend(number, matrix, start):
        tx = make(number)

        def height(x):
            return 0.5 * x @ matrix @ x

        def step(carry):
            count, x, state = carry
            updates, state = tx.update(matrix @ x, state, x)
            return count + 1, x + updates, state

        def unfinished(carry):
            return (carry[0] < 2000) & ~(height(carry[1]) <= 1e-6 * height(start))

        return jax.lax.while_loop(unfinished, step, (0, start, tx.init(start)))[0]

    lanes = jax.vmap(descend, (0, None, None))
    return jax.vmap(lanes, (None, 0, 0))(numbers, matrices, starts)


def best(make):
    """Steps at the best rate, for each bowl; the best is inside the range of rates."""
    steps = steps_needed(make, RATES, *bowls())
    at = steps.argmin(1)
    assert (at > 0).all() and (at < len(RATES) - 1).all()
    return np.asarray(steps.min(1))


@pytest.fixture(scope="module")
def gains():
    return best(lambda rate: olr.local_gains(rate, momentum=0.9))


def test_gains_need_fewer_steps_than_the_same_momentum(gains):
    ratios = gains / best(lambda rate: optax.sgd(rate, 0.9))
    assert ratios[0] <= 0.4
    assert np.median(ratios[1:]) <= 0.75


def test_tuned_momentum_wins_off_the_axes_and_loses_on_them(gains):
    tuned = best(lambda rate: optax.sgd(rate, 0.96))
    assert gains[0] < 0.6 * tuned[0] and np.median(gains[1:] / tuned[1:]) > 1


def test_rprop_needs_fewer_steps_than_that_of_optax():
    first_steps = jnp.geomspace(1e-3, 0.3, 25)
    along_axes = tuple(each[:1] for each in bowls())
    ours = steps_needed(lambda first: olr.rprop(1.0, initial_step=first), first_steps, *along_axes)
    theirs = steps_needed(optax.rprop, first_steps, *along_axes)
    assert theirs.max() < 2000
    assert ours.mean() <= 0.75 * theirs.mean()
