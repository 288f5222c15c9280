"""Writes torch_oracles.json: rates and momenta of PyTorch's schedulers at further arguments.

Run with `python tests/torch_oracles.py` where torch 2.13.0 is installed; the tests need the file alone.
"""

import json
import pathlib
import warnings

ONE_CYCLE = {
    "max_lr": 0.4,
    "total_steps": 47,
    "pct_start": 0.37,
    "div_factor": 10.0,
    "final_div_factor": 100.0,
}


def record(name, steps, config, lr=0.1):
    """The rate and the momentum that steps 0, 1, ... are taken with."""
    import torch  # here, so that collecting the tests does not need it

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **config)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        momenta.append(float(optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return {"config": config, "lr": rates, "momentum": momenta}


def main():
    # After the last step of a run the scheduler is asked once more, and warns.
    warnings.simplefilter("ignore")
    oracles = {
        f"OneCycleLR.{strategy}.{three_phase}": record(
            "OneCycleLR", 46, {**ONE_CYCLE, "anneal_strategy": strategy, "three_phase": three_phase}
        )
        for strategy in ("cos", "linear")
        for three_phase in (False, True)
    }
    oracles["CyclicLR"] = record(
        "CyclicLR", 80, {"base_lr": 0.01, "max_lr": 0.5, "step_size_up": 7, "step_size_down": 12}
    )
    oracles["MultiStepLR"] = record("MultiStepLR", 60, {"milestones": [5, 17, 40], "gamma": 0.3})
    oracles["PolynomialLR"] = record("PolynomialLR", 45, {"total_iters": 33, "power": 1.7})
    oracles["CosineAnnealingLR"] = record("CosineAnnealingLR", 30, {"T_max": 30, "eta_min": 0.01})
    target = pathlib.Path(__file__).with_name("torch_oracles.json")
    target.write_text(json.dumps(oracles) + "\n")


if __name__ == "__main__":
    main()
