"""Writes mup_oracles.json: rates, starts and losses of the reference implementation of Yang et al. 2022.

Run with `python tests/mup_oracles.py` where torch 2.13.0 and mup 1.0.0 are installed; tests need the file alone.
The reference divides the inputs of its output layer by the growth of the width, which the tests undo.
"""

import json
import math
import pathlib

import numpy as np

STEPS, RATES = 6, {"sgd": 0.1, "adam": 0.02}
NARROW, WIDE = {"width": 16, "inner": 64}, {"width": 64, "inner": 384}


def weights(shape, index):
    """The same numbers in any library, [in, out], of the size of the usual start."""
    waves = np.sin(1.0 + index + 0.7 * np.arange(math.prod(shape)) ** 1.3)
    return (waves.reshape(shape) * math.sqrt(2 / shape[0])).astype(np.float32)


def batch():
    x = weights((8, 3), 7) * 4
    return x, np.sin(3 * x.sum(axis=1, keepdims=True)).astype(np.float32)


def layers(torch, width, inner):
    import mup  # here, so that collecting the tests does not need it

    nn = torch.nn
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(50, width),
            "stem": nn.Conv2d(3, width, 3),
            "conv": nn.Conv2d(width, width, 3),
            "depthwise": nn.Conv2d(width, width, 3, groups=width),
            "norm": nn.LayerNorm(width),
            "query": nn.Linear(width, width),
            "wide": nn.Linear(width, inner),
            "narrow": nn.Linear(inner, width, bias=False),
            "still": nn.Linear(7, 5),
            "head": mup.MuReadout(width, 10),
        }
    )


def rates_and_starts(torch):
    """By parameter: both shapes, its rate under each optimizer, and the size of its start over the base's."""
    import mup

    base, model = layers(torch, **NARROW), layers(torch, **WIDE)
    mup.set_base_shapes(model, base, delta=layers(torch, width=32, inner=128))
    before = dict(base.named_parameters())
    found = {}
    names = {}
    for name, leaf in model.named_parameters():
        names[id(leaf)] = name
        found[name] = {"base": list(before[name].shape), "wide": list(leaf.shape)}
        starts = found[name]["start"] = []
        mup.init.constant_std_init_(leaf, lambda _, scale=1.0, starts=starts: starts.append(scale))
    for kind, make in (("sgd", mup.MuSGD), ("adam", mup.MuAdam)):
        for group in make(model.parameters(), lr=1.0).param_groups:
            for leaf in group["params"]:
                found[names[id(leaf)]][kind] = group["lr"]
    return found


def losses(torch, kind):
    """The losses of a multilayer perceptron, of width 64 where the base has 16."""
    import mup

    def model(width):
        nn = torch.nn
        parts = [nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), mup.MuReadout(width, 1)]
        return nn.Sequential(*parts)

    net = model(64)
    mup.set_base_shapes(net, model(16), delta=model(32))
    with torch.no_grad():
        for index, layer in enumerate((net[0], net[2], net[4])):
            layer.weight.copy_(torch.tensor(weights(tuple(layer.weight.shape[::-1]), index).T))
            layer.bias.zero_()
    make = mup.MuAdam if kind == "adam" else mup.MuSGD
    optimizer = make(net.parameters(), lr=RATES[kind], **({} if kind == "adam" else {"momentum": 0.9}))
    x, y = map(torch.tensor, batch())
    found = []
    for _ in range(STEPS):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def main():
    import torch

    torch.manual_seed(0)
    oracles = {
        "rates and starts": rates_and_starts(torch),
        "losses": {kind: losses(torch, kind) for kind in RATES},
    }
    target = pathlib.Path(__file__).with_name("mup_oracles.json")
    target.write_text(json.dumps(oracles, indent=1) + "\n")


if __name__ == "__main__":
    main()
