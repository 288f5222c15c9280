"""Lanes over a backbone that none of them trains, on eight devices: the curves of one, one backbone a device."""

import jax
import numpy as np
import optax
import pytest
from backbone import BACKBONE, BATCHES, RATES, adapters, bytes_needed, search, sharded_start, train_only
from jax.sharding import Mesh
from searches import assert_alike

from optax_lr.engine import task


def one_device():
    return Mesh(np.array(jax.devices()[:1]), ("x",))


def test_eight_devices_find_the_curves_of_one():
    rates = np.geomspace(1e-3, 1e-2, 16)
    found = search(rates=rates, lanes_at_once=2)
    assert "2 at once on each of 8 cpu device(s), 4.0 MiB shared by all" in found.placement
    assert_alike(search(rates=rates, mesh=one_device(), lanes_at_once=16), found)
    assert_alike(search(rates=rates, mesh=one_device()), found)


def test_each_device_holds_one_backbone(monkeypatch):
    one = bytes_needed(monkeypatch, rates=RATES[:1], lanes_at_once=1, mesh=one_device())
    many = {"rates": np.geomspace(1e-3, 1e-2, 32), "lanes_at_once": 4}
    assert bytes_needed(monkeypatch, **many) <= one + 1.5 * BACKBONE
    monkeypatch.setattr(task, "unchanged", lambda closed, count: [False] * count)
    assert bytes_needed(monkeypatch, **many) > one + 2.5 * BACKBONE


@pytest.mark.parametrize("optimizer", [adapters, train_only])
def test_lanes_over_a_sharded_backbone_ride_in_one_vmap(optimizer):
    found = search(params=sharded_start(8), optimizer=optimizer, seeds=2, eval_batch=BATCHES[0])
    assert found.placement == "8 lanes x 2 seeds, 8 at once, sharded as their start, 4.0 MiB shared by all"
    assert_alike(search(mesh=one_device(), optimizer=optimizer, seeds=2, eval_batch=BATCHES[0]), found)


def test_no_lane_copies_a_sharded_backbone(monkeypatch):
    one = bytes_needed(monkeypatch, rates=RATES[:1], params=sharded_start(8))
    # Eight lanes have adapters and their moments of a third of a backbone.
    assert bytes_needed(monkeypatch, params=sharded_start(8)) <= one + 0.6 * BACKBONE
    monkeypatch.setattr(task, "unchanged", lambda closed, count: [False] * count)
    assert bytes_needed(monkeypatch, params=sharded_start(8), lanes_at_once=8) > one + 1.5 * BACKBONE


def test_lanes_over_a_sharded_backbone_resume_after_a_kill(tmp_path):
    options = {"params": sharded_start(8), "eval_batch": BATCHES[0]}

    def killed(runs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(checkpoint=tmp_path, on_round=killed, **options)
    found, whole = search(checkpoint=tmp_path, **options), search(**options)
    assert found.placement == whole.placement
    np.testing.assert_array_equal(found.losses, whole.losses)
    np.testing.assert_array_equal(found.eval_losses, whole.eval_losses)


def test_lanes_that_are_mostly_their_own_go_one_after_the_other():
    found = search(params=sharded_start(8), optimizer=optax.sgd)
    assert "one after the other, sharded as their start" in found.placement
