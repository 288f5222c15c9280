"""Two dozen small problems of the kinds that users bring: what `wild.py` scores searches on.

Batches of one row, heavy tails, bad batches, losses whose value is no measure, losses without noise whose best
rate lies beside divergence, losses below zero, data of two dozen rows, and training that goes on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from wild_parts import BATCHES, Wild, apply, clipped, entropy, momentum, network, rows, square


def one_row(size: int, optimizer: Callable) -> Wild:
    """Linear regression on batches of very few rows."""
    draw = np.random.default_rng(0)
    w = draw.normal(size=6)
    batches, valid = rows(draw, lambda x: x @ w, size, 6, lambda shape: 0.3 * draw.normal(size=shape))
    loss = lambda p, batch: jnp.mean((batch[0] @ p - batch[1]) ** 2)  # noqa: E731
    return Wild(loss, jnp.zeros(6), optimizer, batches, valid)


def heavy_tails() -> Wild:
    """Targets with noise of Student's t with 1.5 degrees: a few batches have a hundred times the usual loss."""
    draw = np.random.default_rng(1)
    w = draw.normal(size=10)
    noise = lambda shape: 0.5 * draw.standard_t(1.5, size=shape)  # noqa: E731
    batches, valid = rows(draw, lambda x: np.sin(x @ w), 32, 10, noise)
    return Wild(square, network(10, 24, 1), optax.adam, batches, valid)


def bad_batches() -> Wild:
    """Eight batches of 400 have targets a hundred times too large; gradients are clipped."""
    draw = np.random.default_rng(2)
    w = draw.normal(size=8)
    batches, valid = rows(draw, lambda x: np.sin(x @ w), 32, 8, np.zeros)
    batches[1][25::50] *= 100
    return Wild(square, network(8, 24, 1), clipped, batches, valid)


def label_noise() -> Wild:
    """256 rows, gone through often, of which two in five have a random label."""
    draw = np.random.default_rng(3)
    w = draw.normal(size=(8, 4))
    x = draw.normal(size=(1256, 8)).astype(np.float32)
    y = (x @ w).argmax(-1).astype(np.int32)
    order = np.concatenate([draw.permutation(256) for _ in range(25)]).reshape(BATCHES, 16)
    noisy = y.copy()
    noisy[:102] = draw.integers(4, size=102)
    return Wild(entropy, network(8, 24, 4), optax.adam, (x[order], noisy[order]), (x[256:], y[256:]))


def policy(optimizer: Callable, *, baseline: bool) -> Wild:
    """A bandit with contexts: the surrogate loss is no measure, the regret of the policy is."""
    draw = np.random.default_rng(4)
    rewards = draw.normal(size=(6, 8)).astype(np.float32)
    x = draw.normal(size=(BATCHES, 32, 6)).astype(np.float32)
    valid = draw.normal(size=(512, 6)).astype(np.float32)

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        logits = apply(params, batch)
        chosen = jax.random.categorical(key, logits)[:, None]
        taken, got = (
            jnp.take_along_axis(values, chosen, -1)[:, 0]
            for values in (jax.nn.log_softmax(logits), batch @ rewards)
        )
        return -jnp.mean(taken * (got - got.mean() if baseline else got))

    def regret(params: Any, batch: Any) -> jax.Array:
        got = batch @ rewards
        return jnp.mean(got.max(-1) - (jax.nn.softmax(apply(params, batch)) * got).sum(-1))

    return Wild(loss, network(6, 24, 8, scale=0.5), optimizer, x, valid, regret, with_key=True)


def contrastive() -> Wild:
    """InfoNCE: two views of each row, told from those of the 31 others in the batch."""
    draw = np.random.default_rng(5)
    mixing = draw.normal(size=(4, 16))
    latent = draw.normal(size=(BATCHES + 8, 32, 4))
    both = latent[:, None] + 0.2 * draw.normal(size=(BATCHES + 8, 2, 32, 4))
    views = (both @ mixing + draw.normal(size=(BATCHES + 8, 2, 32, 16))).astype(np.float32)

    def loss(params: Any, pair: Any) -> jax.Array:
        one, two = (z / jnp.sqrt((z**2).sum(-1, keepdims=True) + 1e-6) for z in apply(params, pair))
        scores = one @ two.T / 0.2
        return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores))).mean()

    held_out = lambda params, pairs: jax.vmap(lambda pair: loss(params, pair))(pairs).mean()  # noqa: E731
    return Wild(loss, network(16, 16, 6), optax.adam, views[:BATCHES], views[BATCHES:], held_out, seeds=32)


def autoencoder() -> Wild:
    """A variational autoencoder: its loss draws noise."""
    draw = np.random.default_rng(6)
    mixing = draw.normal(size=(3, 12))
    x = np.tanh(draw.normal(size=(BATCHES + 16, 32, 3)) @ mixing)
    x = (2 * x + 0.3 * draw.normal(size=x.shape)).astype(np.float32)

    def init(key: jax.Array) -> Any:
        one, two = jax.random.split(key)
        return network(12, 16, 8)(one), network(4, 16, 12)(two)

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        mean, log_scale = jnp.split(apply(params[0], batch), 2, -1)
        latent = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
        error = ((apply(params[1], latent) - batch) ** 2).sum(-1)
        divergence = (mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale).sum(-1)
        return (error + divergence).mean() / 2

    held_out = x[BATCHES:].reshape(-1, 12)
    return Wild(loss, init, optax.adam, x[:BATCHES], held_out, with_key=True, seeds=32)


def imbalance() -> Wild:
    """Three rows in a hundred are of the class that matters."""
    draw = np.random.default_rng(7)
    x = draw.normal(size=(BATCHES * 32 + 2000, 8)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.3 * draw.normal(size=len(x)) > 2.7).astype(np.int32)
    cut = BATCHES * 32
    batches = x[:cut].reshape(BATCHES, 32, 8), y[:cut].reshape(BATCHES, 32)
    return Wild(entropy, network(8, 24, 2), momentum, batches, (x[cut:], y[cut:]))


def physics() -> Wild:
    """u'' = -pi^2 sin(pi x), u = 0 at both ends; what counts is the distance to sin(pi x)."""
    draw = np.random.default_rng(8)

    def u(params: Any, x: jax.Array) -> jax.Array:
        return apply(params, x[None])[0]

    def loss(params: Any, points: Any) -> jax.Array:
        second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(params, points)
        ends = u(params, jnp.zeros(())) ** 2 + u(params, jnp.ones(())) ** 2
        return jnp.mean((second + np.pi**2 * jnp.sin(np.pi * points)) ** 2) + 10 * ends

    def error(params: Any, points: Any) -> jax.Array:
        found = jax.vmap(u, (None, 0))(params, points)
        return jnp.mean((found - jnp.sin(np.pi * points)) ** 2)

    points = draw.uniform(size=(BATCHES, 16)).astype(np.float32)
    grid = np.linspace(0, 1, 65, dtype=np.float32)
    return Wild(loss, network(1, 16, 1, scale=1.5), optax.adam, points, grid, error, seeds=32)


def factorization() -> Wild:
    """Ratings of 40 users and 30 things of rank 3, of which each batch shows 64."""
    draw = np.random.default_rng(9)
    ratings = draw.normal(size=(40, 3)) @ draw.normal(size=(3, 30)) / np.sqrt(3)
    noisy = (ratings + 0.2 * draw.normal(size=ratings.shape)).astype(np.float32)
    cells = draw.permutation(1200)
    seen = draw.choice(cells[:800], size=(BATCHES, 64))

    def triples(cells: np.ndarray) -> tuple:
        return cells // 30, cells % 30, noisy.ravel()[cells]

    def init(key: jax.Array) -> Any:
        one, two = jax.random.split(key)
        return 0.3 * jax.random.normal(one, (40, 4)), 0.3 * jax.random.normal(two, (30, 4))

    def loss(params: Any, batch: Any) -> jax.Array:
        user, thing, rating = batch
        return jnp.mean(((params[0][user] * params[1][thing]).sum(-1) - rating) ** 2)

    return Wild(loss, init, optax.sgd, triples(seen), triples(cells[800:]))


def recurrence() -> Wild:
    """A plain recurrent network that adds two marked numbers, its gradients not clipped."""
    draw = np.random.default_rng(10)
    values = draw.uniform(size=(BATCHES * 16 + 500, 10))
    marks = draw.uniform(size=values.shape).argsort(-1) < 2
    x = np.stack([values, marks], -1).astype(np.float32)
    y = (values * marks).sum(-1).astype(np.float32)

    def init(key: jax.Array) -> Any:
        first, second, third = jax.random.split(key, 3)
        cell = 1.5 * jax.random.normal(second, (16, 16)) / 4
        return network(2, 16)(first), cell, network(16, 1)(third)

    def loss(params: Any, batch: Any) -> jax.Array:
        state = jnp.zeros((len(batch[0]), 16))
        for t in range(10):
            state = jnp.tanh(apply(params[0], batch[0][:, t]) + state @ params[1])
        return jnp.mean((apply(params[2], state)[:, 0] - batch[1]) ** 2)

    cut = BATCHES * 16
    batches = x[:cut].reshape(BATCHES, 16, 10, 2), y[:cut].reshape(BATCHES, 16)
    return Wild(loss, init, momentum, batches, (x[cut:], y[cut:]), seeds=32)


def tiny() -> Wild:
    """24 noisy rows, all of them in the one batch there is."""
    draw = np.random.default_rng(11)
    w = draw.normal(size=10)
    (x, y), valid = rows(draw, lambda x: np.sin(x @ w / 2), 24, 10, lambda n: 0.5 * draw.normal(size=n))
    return Wild(square, network(10, 24, 1), optax.adamw, (x[:1], y[:1]), valid)


def bowl(optimizer: Callable, *, condition: float, noise: float) -> Wild:
    """A quadratic; its gradients have noise, or none, and then the best rate lies beside divergence."""
    curvatures = np.geomspace(100 / condition, 100, 30).astype(np.float32)
    draw = np.random.default_rng(12)
    pushes = noise * np.sqrt(curvatures) * draw.normal(size=(BATCHES, 30)).astype(np.float32)
    loss = lambda p, push: 0.5 * jnp.sum(curvatures * p**2) + p @ push  # noqa: E731
    still = np.zeros(30, np.float32)
    return Wild(loss, jnp.ones(30), optimizer, pushes, still, seeds=64 if noise else 1)


def separable() -> Wild:
    """Two classes with a gap between them: the loss falls for ever, the faster the larger the weights."""
    draw = np.random.default_rng(13)
    w = draw.normal(size=8)
    x = draw.normal(size=(30000, 8)).astype(np.float32)
    x = x[np.abs(x @ w) > 0.5 * np.linalg.norm(w)][: BATCHES * 16 + 1000]
    y, cut = np.sign(x @ w).astype(np.float32), BATCHES * 16
    loss = lambda p, batch: jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ p)))  # noqa: E731
    batches = x[:cut].reshape(BATCHES, 16, 8), y[:cut].reshape(BATCHES, 16)
    return Wild(loss, jnp.zeros(8), optax.sgd, batches, (x[cut:], y[cut:]))


def rare_words() -> Wild:
    """Embeddings of 200 words by Zipf's law: most are in few batches, or in none."""
    draw = np.random.default_rng(14)
    shares = 1 / np.arange(1, 201)
    words = draw.choice(200, size=(BATCHES * 16 + 1000, 6), p=shares / shares.sum()).astype(np.int32)
    scores = draw.normal(size=(200, 5))[words].sum(1) + 0.5 * draw.normal(size=(len(words), 5))
    labels, cut = scores.argmax(-1).astype(np.int32), BATCHES * 16

    def init(key: jax.Array) -> Any:
        one, two = jax.random.split(key)
        return 0.1 * jax.random.normal(one, (200, 8)), network(8, 5)(two)

    loss = lambda p, batch: entropy(p[1], (p[0][batch[0]].sum(1), batch[1]))  # noqa: E731
    batches = words[:cut].reshape(BATCHES, 16, 6), labels[:cut].reshape(BATCHES, 16)
    return Wild(loss, init, optax.adagrad, batches, (words[cut:], labels[cut:]), seeds=32)


def two_tasks() -> Wild:
    """Two targets, one in units a thirtieth of the other's; both count alike in validation."""
    draw = np.random.default_rng(15)
    w = draw.normal(size=(8, 2))
    unit = np.array([1.0, 30.0], np.float32)
    noise = lambda shape: 0.2 * unit * draw.normal(size=shape)  # noqa: E731
    batches, valid = rows(draw, lambda x: unit * np.sin(x @ w), 32, 8, noise)
    loss = lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)  # noqa: E731
    both = lambda p, batch: jnp.mean(((apply(p, batch[0]) - batch[1]) / unit) ** 2)  # noqa: E731
    return Wild(loss, network(8, 24, 2), optax.adam, batches, valid, both)


def continued() -> Wild:
    """A classifier that has been trained for 600 steps already."""
    draw = np.random.default_rng(16)
    w = draw.normal(size=12)
    x = draw.normal(size=(1000 * 16 + 2000, 12)).astype(np.float32)
    y, cut = (x @ w > 0).astype(np.int32), 1000 * 16
    batches = jax.tree.map(jnp.asarray, (x[:cut].reshape(1000, 16, 12), y[:cut].reshape(1000, 16)))
    optimizer, params = optax.adam(0.01), network(12, 24, 2)(jax.random.key(0))

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(entropy)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    before = jax.tree.map(lambda a: a[:600], batches)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), before)
    rest = jax.tree.map(lambda a: np.asarray(a[600:]), batches)
    return Wild(entropy, params, optax.adam, rest, (x[cut:], y[cut:]))


def temporal_difference() -> Wild:
    """Values of a random walk over ten states by semi-gradients: the loss moves its own targets."""
    draw = np.random.default_rng(17)
    features = draw.normal(size=(10, 10)) / np.sqrt(10) + np.eye(10)
    moves = draw.integers(0, 10, size=(BATCHES, 8))
    to = (moves + draw.choice([-1, 1], size=moves.shape)) % 10
    reward = (moves == 0) + 0.5 * draw.normal(size=moves.shape)
    step = 0.5 * (np.eye(10)[(np.arange(10) + 1) % 10] + np.eye(10)[(np.arange(10) - 1) % 10])
    values = np.linalg.solve(np.eye(10) - 0.9 * step, np.eye(10)[0]).astype(np.float32)
    table = features.astype(np.float32)

    def loss(params: Any, batch: Any) -> jax.Array:
        states, rewards, after = batch
        target = rewards + 0.9 * jax.lax.stop_gradient(jnp.asarray(table)[after] @ params)
        return jnp.mean((jnp.asarray(table)[states] @ params - target) ** 2)

    error = lambda params, true: jnp.mean((table @ params - true) ** 2)  # noqa: E731
    batches = moves, reward.astype(np.float32), to
    return Wild(loss, jnp.zeros(10), optax.sgd, batches, values, error)


def likelihood() -> Wild:
    """The density of a target whose spread depends on the row: a loss that falls below zero."""
    draw = np.random.default_rng(18)
    w = draw.normal(size=(6, 2)) / 2
    x = draw.normal(size=(BATCHES * 32 + 2000, 6)).astype(np.float32)
    mean, log_scale = np.sin(x @ w[:, 0]), -2.5 + x @ w[:, 1] / 3
    y = (mean + np.exp(log_scale) * draw.normal(size=len(x))).astype(np.float32)
    cut = BATCHES * 32

    def loss(params: Any, batch: Any) -> jax.Array:
        mean, log_scale = jnp.moveaxis(apply(params, batch[0]), -1, 0)
        return jnp.mean(log_scale + 0.5 * ((batch[1] - mean) * jnp.exp(-log_scale)) ** 2)

    right = log_scale + 0.5 * ((y - mean) * np.exp(-log_scale)) ** 2
    batches = x[:cut].reshape(BATCHES, 32, 6), y[:cut].reshape(BATCHES, 32)
    floor = float(right[cut:].mean())
    return Wild(loss, network(6, 24, 2), optax.adam, batches, (x[cut:], y[cut:]), floor=floor)


def attention() -> Wild:
    """One head of attention: the symbol that stands where the first one points to."""
    draw = np.random.default_rng(19)
    x = draw.integers(0, 6, size=(BATCHES * 16 + 500, 7)).astype(np.int32)
    y, cut = x[np.arange(len(x)), 1 + x[:, 0]], BATCHES * 16

    def init(key: jax.Array) -> Any:
        one, two, three = jax.random.split(key, 3)
        table = jax.random.normal(one, (6, 12))
        places = jax.random.normal(two, (7, 12))
        attend, head = network(12, 36)(three), network(12, 6)(one)
        return {"table": table, "places": places, "attend": attend, "head": head}

    def loss(params: Any, batch: Any) -> jax.Array:
        x = params["table"][batch[0]] + params["places"]
        query, key, value = jnp.split(apply(params["attend"], x), 3, -1)
        weights = jax.nn.softmax(jnp.einsum("bf,btf->bt", query[:, 0], key) / np.sqrt(12))
        return entropy(params["head"], (jnp.einsum("bt,btf->bf", weights, value), batch[1]))

    batches = x[:cut].reshape(BATCHES, 16, 7), y[:cut].reshape(BATCHES, 16)
    return Wild(loss, init, optax.adamw, batches, (x[cut:], y[cut:]), seeds=32)


PROBLEMS: Mapping[str, Callable[[], Wild]] = {
    "batches of one row": lambda: one_row(1, optax.sgd),
    "batches of four rows": lambda: one_row(4, momentum),
    "heavy tails": heavy_tails,
    "bad batches": bad_batches,
    "label noise": label_noise,
    "policy gradient": lambda: policy(optax.adam, baseline=False),
    "policy gradient, baseline": lambda: policy(momentum, baseline=True),
    "InfoNCE": contrastive,
    "variational autoencoder": autoencoder,
    "imbalance": imbalance,
    "physics-informed": physics,
    "matrix factorization": factorization,
    "recurrence without clipping": recurrence,
    "tiny data": tiny,
    "quadratic": lambda: bowl(optax.sgd, condition=1e4, noise=0.0),
    "quadratic, heavy ball": lambda: bowl(momentum, condition=1e4, noise=0.0),
    "quadratic with noise": lambda: bowl(optax.sgd, condition=1e3, noise=1.0),
    "separable": separable,
    "Zipf embeddings": rare_words,
    "two tasks": two_tasks,
    "continued training": continued,
    "temporal differences": temporal_difference,
    "likelihood below zero": likelihood,
    "attention": attention,
}
