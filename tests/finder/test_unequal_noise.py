"""Rules where the loss falls to a thousandth: what noise there is grows with it, and no parabola fits."""

import numpy as np
import optax

import optax_lr as olr
from optax_lr import LRCurve, suggest
from optax_lr.finder.comparison import near_best, pooled_deviation
from optax_lr.finder.judging import Judged

RATES = np.geomspace(0.02, 3, 24)
# exp(-rate / SLOW) + FLOOR rate / SLOW has its lowest point where its derivative is zero.
SLOW, FLOOR = 0.05, 0.002
BEST = -SLOW * np.log(FLOOR)


def loss(rate):
    """As after few steps of gradient descent: the start's error dies away with the rate, that of noise grows."""
    return np.exp(-rate / SLOW) + FLOOR * rate / SLOW


def over(rate):
    return loss(rate) / loss(BEST) - 1


def curve_of(losses, rates=RATES):
    """Runs of one step from a loss of 1."""
    table = np.atleast_2d(losses).astype(np.float32)
    lost, at = np.full(table.shape, -1, np.int32), np.array([], np.int32)
    return LRCurve(rates, table[..., None], None, at, lost, reference=np.ones(len(table), np.float32))


def test_noise_that_grows_with_the_loss_hides_the_best_no_more_than_it_must():
    draw, answers = np.random.default_rng(0), []
    for _ in range(100):
        noise = np.exp(0.4 * draw.normal(size=(3, 1)) + 0.3 * draw.normal(size=(3, len(RATES))))
        answers.append(suggest.lowest_loss(curve_of(loss(RATES) * noise)))
    excess = [over(found.learning_rate) for found in answers]
    assert np.median(excess) < 0.03 and np.percentile(excess, 90) < 0.1
    held = [(over(np.geomspace(found.low, found.high, 50)) <= 0.01).any() for found in answers]
    assert np.mean(held) >= 0.85
    assert np.median([found.high / found.low for found in answers]) < 2


def test_the_curve_is_right_where_the_best_is_wherever_lanes_lie():
    for shift in np.linspace(0, 1, 7):
        rates = RATES * (RATES[1] / RATES[0]) ** shift
        assert over(suggest.lowest_loss(curve_of(loss(rates), rates)).learning_rate) < 0.02


def test_the_noise_of_the_best_is_not_that_of_lanes_which_stand_out_of_it():
    draw = np.random.default_rng(1)
    heights = -1 + 0.001 * draw.normal(size=(3, 12))
    heights[:, 8:] += 0.2 * np.abs(draw.normal(size=(3, 4)))
    assert near_best(heights).shape[1] <= 9 and pooled_deviation(near_best(heights)) < 0.002
    # Where all lanes have one noise, it is told by most of them, and rightly.
    alike = [near_best(-1 + 0.01 * draw.normal(size=(3, 12))) for _ in range(200)]
    assert np.mean([some.shape[1] for some in alike]) > 8
    variance = np.mean([pooled_deviation(some) ** 2 for some in alike])
    assert abs(variance / 0.01**2 - 1) < 0.1
    # A neighbor of the best counts, however it fares.
    beside = -1 + 0.001 * draw.normal(size=(3, 3)) + [0.01, 0.0, 0.0]
    beside[:, 2] += [0.0, 0.0, 0.3]
    assert near_best(beside).shape[1] == 3


def test_runs_of_the_whole_length_leave_nothing_to_carry_on():
    batches = np.random.default_rng(2).normal(size=(40, 8, 3)).astype(np.float32)

    def square(params, batch):
        return ((batch @ (params - 1)) ** 2).mean()

    def quick(horizon):
        return olr.lr_find(
            square, np.zeros(3, np.float32), optax.sgd, batches, eval_batch=batches[0], horizon=horizon,
            num_steps=10, progress=False,
        )  # fmt: skip

    whole, longer = quick(40), quick(80)
    alone = suggest.lowest_loss(whole.curve)
    assert (whole.learning_rate, whole.low, whole.high) == (alone.learning_rate, alone.low, alone.high)
    assert "carried on" not in whole.reason and whole.horizon is None and len(whole.shorter) == 2
    assert "carried on to 80 steps" in longer.reason and longer.horizon == 80


def fell(heights):
    """Whether a search says that it learned, of heights [seeds, lanes]."""
    rates = 2.0 ** np.arange(np.shape(heights)[1])
    return "No rate learned" not in suggest.lowest_loss(curve_of(1 + np.array(heights), rates)).reason


def test_what_lower_rates_learned_is_not_hidden_by_the_noise_of_the_best():
    steady = np.array([-0.010, -0.014, -0.018, -0.025, -0.030, 0.02])
    rough = np.array([0.001, 0.001, 0.002, 0.03, 0.04, 0.06])
    assert fell([steady + rough, steady - rough])
    # The same noise at all rates hides it.
    assert not fell([steady + 0.04, steady - 0.04])


def test_noise_alone_is_called_learning_no_oftener_for_the_lower_rates():
    draw, growing = np.random.default_rng(3), 2.0 ** np.arange(15)
    found = [
        Judged(10, heights, heights, np.zeros_like(heights), 0.0, known=True)
        for heights in draw.normal(size=(400, 3, 15)) * growing
    ]
    by_the_best = np.mean([point.fall > point.doubt for point in found])
    assert np.mean([point.learned for point in found]) < by_the_best + 0.05
