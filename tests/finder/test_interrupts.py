"""Ctrl-C in a search: it answers from the rounds that it finished, or goes on later from its checkpoint."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.engine.session import Session
from optax_lr.finder.finalists import Scheduled

X = np.random.default_rng(0).normal(size=(40, 8, 4)).astype(np.float32)


def loss_fn(params, batch):
    return jnp.mean((batch @ params - batch.sum(-1)) ** 2)


def schedule(peak):
    return olr.one_cycle_schedule(peak, 40)


def search(**options):
    return olr.lr_find(
        loss_fn, jnp.zeros(4), optax.sgd, X, eval_batch=X[0], horizon=40, num_steps=40, schedule=schedule,
        progress=False, **options,
    )  # fmt: skip


@pytest.fixture
def interrupted_in(monkeypatch):
    """Ctrl-C when a round begins, counted from 0."""

    def interrupted(number):
        run, rounds = Session._say, []

        def counted(self, *arguments):
            rounds.append(self.runs.rounds)
            if rounds[-1] == number + 1:
                os.kill(os.getpid(), signal.SIGINT)
            return run(self, *arguments)

        monkeypatch.setattr(Session, "_say", counted)

    return interrupted


def test_before_any_round_has_ended_the_interrupt_is_raised(interrupted_in):
    interrupted_in(0)
    with pytest.raises(KeyboardInterrupt):
        search()


def test_afterwards_the_finished_rounds_answer(tmp_path, monkeypatch, interrupted_in):
    whole = search()
    interrupted_in(1)
    with pytest.warns(UserWarning, match="interrupted: its answer is that of 1 finished rounds"):
        found = search(checkpoint=tmp_path)
    assert whole.learning_rate / 30 < found.learning_rate < whole.learning_rate * 30
    monkeypatch.undo()
    resumed = search(checkpoint=tmp_path)
    assert str(resumed) == str(whole)
    np.testing.assert_array_equal(resumed.curve.losses, whole.curve.losses)
    np.testing.assert_array_equal(resumed.params, whole.params)


def test_a_quick_search_that_lacks_its_whole_runs_carries_on_the_drift(interrupted_in):
    """Its longest runs are those of the horizon; interrupted before them it has shorter ones alone."""
    interrupted_in(1)
    with pytest.warns(UserWarning, match="interrupted"):
        found = olr.lr_find(
            loss_fn, jnp.zeros(4), optax.sgd, X, eval_batch=X[0], horizon=40, num_steps=40, progress=False
        )
    assert (
        found.horizon == 40 and found.curve.losses.shape[-1] < 40 and "carried on to 40 steps" in found.reason
    )


@pytest.mark.parametrize("where", ["on_round", "a policy"])
def test_between_rounds_it_is_heard_too(monkeypatch, where):
    handler, told, ask = signal.getsignal(signal.SIGINT), [], Scheduled.ask

    def telling(rows):
        told.append(len(rows))
        if where == "on_round" and len(told) == 2:
            # The user's own handler is in force, so that a function that hangs is left.
            assert signal.getsignal(signal.SIGINT) is handler
            os.kill(os.getpid(), signal.SIGINT)

    def asking(self, runs):
        if where == "a policy" and runs.rounds == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self, runs)

    monkeypatch.setattr(Scheduled, "ask", asking)
    with pytest.warns(UserWarning, match="interrupted: its answer is that of 2 finished rounds"):
        found = search(on_round=telling)
    assert len(told) == 2 and np.isfinite(found.learning_rate)
    assert signal.getsignal(signal.SIGINT) is handler
