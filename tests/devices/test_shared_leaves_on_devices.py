"""Lanes over a backbone that none of them trains, on eight devices: the curves of one, one backbone a device."""

import jax
import numpy as np
from backbone import BACKBONE, RATES, bytes_needed, search
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
