"""The plan of the house: imports run one way, names are bound once, the surface is what is declared."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import optax_lr as olr

PACKAGE = pathlib.Path(olr.__file__).parent

# From the first to the last: a folder imports from those before it, and a module from those before it in its own.
# A file that stands in no folder is one of a single module.
ROOMS = {
    "types": "",
    "checks": "",
    "schedules": "named curves times cycles pieces phases one_cycle tables decays cyclical compose warmups",
    "learning_rate": "",
    "visible": "",
    "layers": (
        "labels patterns layouts labelers depths multipliers tables scaling freezing per_label "
        "optimizer_steps unfreezing fine_tuning growth width width_check"
    ),
    "adaptive": "signs gains rprop statistics plateau",
    "effective": "",
    "in_force": "",
    "snapshots": "transformation ensemble",
    "carry": "leaves counts numbers carrying",
    "engine": (
        "results runs unchanged layout leaves traces task batches lengths stops builder program programs choose "
        "checkpoints progress arrays jobs workers reference opening machine kept interrupts session engine sweep"
    ),
    "finder": (
        "files display losses merging columns curve suggestion comparison judging smooth outcomes neighbors rules "
        "stable classic regimes suggest verdict histories diagnose grids problem optimizer tables views model "
        "levels seen beliefs ceilings training folds late inputs policy constant quick finalists spending budget "
        "branches combinations search ways find sweep ramp_checks range_test refind compared compare "
        "curvature transfer"
    ),
    "plots": "style heat_map histories rates schedules comparisons effective widths traces",
    "nnx": "modules finders optimizers",
}
ORDER = [
    f"{folder}.{module}".rstrip(".")
    for folder, modules in ROOMS.items()
    for module in modules.split() or [""]
]

# A result may import `plots` inside a method, so that it shows its picture.
INSIDE_FUNCTIONS = {
    (room, "plots")
    for room in "finder.display finder.curve finder.suggestion finder.compared layers.width_check".split()
}

PUBLIC = {
    "add_schedules",
    "exponential_decay",
    "cosine_onecycle_schedule",
    "fastai_one_cycle_schedule",
    "linear_onecycle_schedule",
    "constant_schedule",
    "cosine_decay_schedule",
    "linear_schedule",
    "polynomial_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "table_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "anneal_schedule",
    "at_depth",
    "average_snapshots",
    "carry_state",
    "CarriedState",
    "clear_learning_rate",
    "clip_schedule",
    "compare",
    "Comparison",
    "curves",
    "Cycles",
    "cyclical_momentum_schedule",
    "DepthPattern",
    "cyclical_schedule",
    "describe_labels",
    "describe_learning_rates",
    "diagnose",
    "effective_rates",
    "EffectiveRates",
    "ensemble_predict",
    "Engine",
    "Epochs",
    "EnsemblePrediction",
    "fan_in_multipliers",
    "fine_tune",
    "FineTuneState",
    "geometric_multipliers",
    "geometric_schedule",
    "get_learning_rate",
    "get_learning_rates",
    "get_snapshots",
    "in_epochs",
    "inverse_sqrt_schedule",
    "inverse_time_schedule",
    "join_schedules",
    "knot_schedule",
    "label_by_depth",
    "label_by_fan_in",
    "label_by_path",
    "Labeler",
    "layer_decay",
    "learning_rates_in_force",
    "grid",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "LRCurve",
    "MultiplierRule",
    "multiply_schedules",
    "one_cycle_momentum_schedule",
    "one_cycle_schedule",
    "GainStatistics",
    "gain_statistics",
    "local_gains",
    "rprop",
    "reduce_on_plateau",
    "scale_by_delta_bar_delta",
    "scale_by_local_gains",
    "scale_by_rprop",
    "ScaleByLearningRateState",
    "Problem",
    "refresh_batch_stats",
    "rescale_for_batch",
    "sample_schedule",
    "scale_by_label",
    "scale_by_learning_rate",
    "scale_schedule",
    "ScaleByLabelState",
    "set_learning_rate",
    "set_unfreezing_steps",
    "sgdr_schedule",
    "shift_schedule",
    "slanted_triangular_schedule",
    "snapshot_at_cycle_ends",
    "SnapshotAtCycleEndsState",
    "StackedLabel",
    "Snapshots",
    "suggest",
    "Suggestion",
    "sweep",
    "SweepResult",
    "top_curvature",
    "track_effective_rates",
    "TrackEffectiveRatesState",
    "train_only",
    "unfreeze_at",
    "UnfreezeAtState",
    "Verdict",
    "visible",
    "VisibleState",
    "warmup_stable_decay_schedule",
    "with_warmup",
    "zero_until",
    "label_by_width",
    "width_multipliers",
    "rescale_init",
    "check_width_transfer",
    "WidthCheck",
    "lr_transfer",
    "ZeroUntilState",
}

# What users reach after `import optax_lr.nnx`.
PUBLIC_NNX = {
    "clear_learning_rate",
    "get_learning_rate",
    "get_learning_rates",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "set_learning_rate",
    "set_unfreezing_steps",
    "trainable",
}


def rooms():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")


def room_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def public_functions():
    """Every public name bound to a function, with the function."""
    return [(name, getattr(olr, name)) for name in sorted(PUBLIC) if inspect.isfunction(getattr(olr, name))]


def functions_returning(annotation):
    """The names of the public functions with that return annotation: the factories that a table must hold."""
    return {
        name
        for name, function in public_functions()
        if inspect.get_annotations(function).get("return") == annotation
    }


def imported(room, node):
    """The rooms that a relative import in a room reads."""
    here = room.split(".")[: -node.level]
    named = [*here, *(node.module or "").split(".")]
    prefix = ".".join(part for part in named if part)
    inside = [".".join(filter(None, [prefix, alias.name])) for alias in node.names]
    return [prefix] if prefix in ORDER else inside


def wrong_imports(room, source):
    """The imports of a room that the plan does not allow."""
    tree = ast.parse(source)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    wrong = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        for name in imported(room, node):
            allowed = name in ORDER and ORDER.index(name) < ORDER.index(room)
            if not allowed and not (id(node) in inner and (room, name) in INSIDE_FUNCTIONS):
                wrong.append(name)
    return wrong


def rebinds(source):
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global | ast.Nonlocal)
    ]


def long_functions(source):
    """The functions of more than 60 lines, docstring aside."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            if node.end_lineno - node.lineno + 1 - documented > 60:
                found.append(node.name)
    return found


@pytest.mark.parametrize("path", rooms(), ids=room_of)
def test_room_keeps_to_the_plan(path):
    assert room_of(path) in ORDER
    assert wrong_imports(room_of(path), path.read_text()) == []
    assert rebinds(path.read_text()) == []
    limit = 300 if room_of(path).startswith(("engine", "finder")) else 400
    assert len(path.read_text().splitlines()) <= limit
    assert long_functions(path.read_text()) == []


def test_the_guards_can_fail():
    assert wrong_imports("schedules.curves", "from .phases import anneal_schedule") == ["schedules.phases"]
    assert wrong_imports("schedules.curves", "from ..engine.runs import Runs") == ["engine.runs"]
    assert wrong_imports("engine.workers", "from ..finder import suggest") == ["finder.suggest"]
    assert wrong_imports("finder.find", "from ..engine.sweep import sweep\nfrom .. import checks") == []
    assert wrong_imports("finder.curve", "from .. import plots") == ["plots"]
    assert wrong_imports("finder.curve", "def plot():\n    from .. import plots") == []
    assert long_functions("def f():\n" + "    x = 1\n" * 60) == ["f"]
    assert rebinds("def f():\n    global x\n    x = 1") == [2]


def test_tests_mirror_the_folders():
    tests = pathlib.Path(__file__).parent
    assert {name for name, modules in ROOMS.items() if modules} <= {path.name for path in tests.iterdir()}


def test_only_two_rooms_import_matplotlib_and_flax():
    for name, room in (("matplotlib", "plots"), ("flax", "nnx")):
        users = {
            room_of(path).split(".")[0]
            for path in rooms()
            if f"import {name}" in path.read_text().replace("from ", "import ")
        }
        assert users <= {room}


def exported(source):
    """The names that an `__init__` imports from its modules, each as itself; some for type checkers alone."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    nodes = [
        node for node in nodes if node.level and (node.module or node.names[0].name not in ("nnx", "plots"))
    ]
    aliases = [alias for node in nodes for alias in node.names]
    assert all(alias.asname == alias.name for alias in aliases)
    return [alias.name for alias in aliases]


def test_public_surface_is_what_is_declared():
    names = exported((PACKAGE / "__init__.py").read_text())
    assert len(names) == len(set(names)) and set(names) == PUBLIC
    of_folders = [
        name
        for path in PACKAGE.glob("*/__init__.py")
        if path.parent.name not in ("plots", "nnx")
        for name in exported(path.read_text())
    ]
    assert len(of_folders) == len(set(of_folders)) and set(of_folders) <= PUBLIC
    for name, function in public_functions():
        assert inspect.getdoc(function), name


@pytest.mark.parametrize("path", [PACKAGE, *(path.parent for path in PACKAGE.glob("*/__init__.py"))], ids=str)
def test_what_is_seen_is_what_is_public(path):
    source = (path / "__init__.py").read_text()
    module = importlib.import_module(".".join(["optax_lr", *path.relative_to(PACKAGE).parts]))
    lazy = {"nnx", "plots"} if path == PACKAGE else set()
    assert module.__all__ == sorted({*exported(source), *lazy})
    if path == PACKAGE:
        assert dir(olr) == olr.__all__
        assert callable(olr.nnx.lr_find) and callable(olr.plots.plot_lr_curve)
        with pytest.raises(AttributeError, match="no attribute 'find_lr'"):
            olr.find_lr  # noqa: B018


@pytest.mark.parametrize(
    "module", [olr, olr.curves, olr.nnx, olr.plots, olr.suggest], ids=lambda m: m.__name__
)
def test_completion_shows_public_names_alone(module):
    assert dir(module) == sorted(module.__all__) and all(hasattr(module, name) for name in dir(module))


def test_the_functions_of_nnx_are_what_is_declared():
    assert set(olr.nnx.__all__) == PUBLIC_NNX
    assert all(">>>" in inspect.getdoc(getattr(olr.nnx, name)) for name in PUBLIC_NNX)


def test_the_rules_are_all_that_suggest_shows():
    assert dir(olr.suggest) == sorted(olr.suggest.__all__)
    for name in dir(olr.suggest):
        rule = getattr(olr.suggest, name)
        assert inspect.isfunction(rule) and inspect.getdoc(rule) and rule.__name__ == name, name


def test_import_is_light():
    heavy = (
        "matplotlib flax orbax chex sklearn scipy.stats pandas tqdm jax.extend jaxtyping numpy.typing "
        "optax_lr.finder optax_lr.engine".split()
    )
    code = (
        f"import sys, jax, optax; before = set(sys.modules); import optax_lr; "
        f"print(*[m for m in {heavy} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError, match="learning_rates"):
        olr.LRCurve(np.zeros((2, 2)), np.zeros((1, 2, 3)), None, np.zeros(0, int), np.zeros((1, 2), int))
