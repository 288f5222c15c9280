"""Pictures: the only folder that imports matplotlib. Every function draws on `ax`, or on new axes, and returns it.

Colors are the current style's, `plt.style.use("dark_background")` included. `style` has what all pictures share;
`rates` draws losses over rates, `heat_map` over two hyperparameters, `histories` over steps; `schedules` draws
schedules, `comparisons` the runs of `compare`, `effective` effective rates, `widths` a check over
widths, `traces` a search.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "optax_lr.plots needs matplotlib: pip install 'optax-lr[plots]'", name="matplotlib"
    ) from error

from .comparisons import plot_comparison as plot_comparison
from .effective import plot_effective_rates as plot_effective_rates
from .heat_map import plot_grid as plot_grid
from .histories import plot_histories as plot_histories
from .rates import plot_lr_curve as plot_lr_curve
from .schedules import plot_schedules as plot_schedules
from .style import png as png
from .traces import plot_trace as plot_trace
from .widths import plot_width_check as plot_width_check

__all__ = [
    "plot_comparison",
    "plot_effective_rates",
    "plot_grid",
    "plot_histories",
    "plot_lr_curve",
    "plot_schedules",
    "plot_trace",
    "plot_width_check",
    "png",
]


def __dir__() -> list[str]:
    return __all__
