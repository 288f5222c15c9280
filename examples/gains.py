"""The table of what was gained, with intervals over the seeds: Student's, at 95%."""

import numpy as np
import scipy.stats


def interval(values):
    """The mean over the seeds, the first axis, and half the width of its interval."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, axis=0, ddof=1) / len(values) ** 0.5
    return np.mean(values, axis=0), half


def report(measure, found, *, sign, percent=False):
    """A line for each way: its measure [seeds], and the gain over the first way, seed by seed; + is better.

    `sign` is 1 where more is better, -1 where less is. In the end it is said which ways are better than the first.
    """
    first, base = next(iter(found.items()))
    form, scale = (".1f", 100) if percent else (".4f", 1)
    print(f"{measure}, {len(base)} seeds{'':>20}gain over {first}")
    width, verdicts = max(map(len, found)), {}
    for name, values in found.items():
        (mean, half), (gain, spread) = interval(scale * values), interval(scale * sign * (values - base))
        verdicts[name] = "better" if gain > spread else "worse" if gain < -spread else "even"
        words = "" if name == first else f"{gain:>+12{form}} ± {spread:{form}} {verdicts[name]}"
        print(f"  {name:<{width}}{mean:>10{form}} ± {half:{form}}{words}")
    better = [name for name, verdict in verdicts.items() if verdict == "better"]
    print(f"Better than {first}: {'; '.join(better) or 'none'}.")
