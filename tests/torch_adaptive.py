"""Values of PyTorch's Rprop and ReduceLROnPlateau, to be compared with. They were made by

python -m venv torch && torch/bin/pip install torch==2.13.0 numpy && torch/bin/python tests/torch_adaptive.py
"""

import json
import pathlib

import numpy as np


def rprop(torch, steps, **options):
    """Weights before each step, and their gradients: those of a quadratic bowl, and a zero now and then."""
    weights = torch.linspace(-2.0, 3.0, 6, dtype=torch.float64).requires_grad_()
    curvature = torch.logspace(0, 3, 6, dtype=torch.float64)
    optimizer = torch.optim.Rprop([weights], **options)
    seen, gradients = [], []
    for step in range(steps):
        gradient = curvature * (weights.detach() - 0.5)
        if step % 9 < 6:
            gradient[step % 9] = 0.0
        weights.grad = gradient
        seen.append(weights.detach().tolist())
        gradients.append(gradient.tolist())
        optimizer.step()
    return {"options": options, "weights": seen, "gradients": gradients}


def plateau(torch, metrics, **options):
    """The rate that stands before each metric, from 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    rates = []
    for metric in metrics:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(metric)
    return {"options": options, "metrics": metrics, "rates": rates}


def main():
    import torch

    normal = np.random.default_rng(5).normal
    falling = np.round(1 / np.arange(1, 81) ** 0.5 + 0.05 * normal(size=80), 4).clip(0.01)
    options = [
        {"factor": 0.5, "patience": 2},
        {"factor": 0.5, "patience": 0, "cooldown": 2},
        {"factor": 0.3, "patience": 3, "cooldown": 1, "threshold": 0.02, "threshold_mode": "abs"},
        {"factor": 0.5, "patience": 1, "threshold": 0.05, "min_lr": 0.01},
    ]
    plateaus = [
        plateau(torch, (falling if mode == "min" else 1.5 - falling).tolist(), mode=mode, **option)
        for option in options
        for mode in ("min", "max")
    ]
    flat = [plateau(torch, [1.0] * 12, factor=0.5, patience=2)]
    rprops = [rprop(torch, 40, lr=0.1), rprop(torch, 40, lr=0.5, etas=(0.3, 1.5), step_sizes=(0.01, 1.0))]
    values = {"torch": torch.__version__, "rprop": rprops, "plateau": plateaus + flat}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
