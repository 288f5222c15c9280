"""The plan of the house: imports run one way, names are bound once, the surface is what is declared."""

import ast
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
    "schedules": "curves cycles phases decays cyclical compose",
    "learning_rate": "",
    "layers": "labels layerwise",
    "adaptive": "gains rprop plateau",
    "snapshots": "",
    "engine": "results batches lanes placement checkpoints progress jobs sweep",
    "finder": "curve suggestion suggest diagnose grids problem runs range_test searches find refind",
    "plots": "",
    "nnx": "",
}
ORDER = [
    f"{folder}.{module}".rstrip(".")
    for folder, modules in ROOMS.items()
    for module in modules.split() or [""]
]

# A result may import `plots` inside a method, so that it shows its picture.
INSIDE_FUNCTIONS = {("finder.curve", "plots"), ("finder.suggestion", "plots")}

PUBLIC = {
    "anneal_schedule",
    "average_snapshots",
    "clear_learning_rate",
    "clip_schedule",
    "curves",
    "Cycles",
    "cyclical_momentum_schedule",
    "cyclical_schedule",
    "describe_labels",
    "diagnose",
    "ensemble_predict",
    "EnsemblePrediction",
    "exponential_decay_schedule",
    "fan_in_multipliers",
    "fine_tune",
    "geometric_multipliers",
    "geometric_schedule",
    "get_learning_rate",
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
    "grid",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "LRCurve",
    "multiply_schedules",
    "multistep_decay_schedule",
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
    "polynomial_decay_schedule",
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
    "Snapshots",
    "step_decay_schedule",
    "suggest",
    "Suggestion",
    "sweep",
    "SweepResult",
    "train_only",
    "unfreeze_at",
    "UnfreezeAtState",
    "Verdict",
    "warmup_stable_decay_schedule",
    "with_warmup",
    "zero_until",
    "ZeroUntilState",
}

# What users reach after `import optax_lr.nnx`.
PUBLIC_NNX = {
    "clear_learning_rate",
    "get_learning_rate",
    "lr_find",
    "lr_range_test",
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


@pytest.mark.parametrize("path", rooms(), ids=room_of)
def test_room_keeps_to_the_plan(path):
    assert room_of(path) in ORDER
    assert wrong_imports(room_of(path), path.read_text()) == []
    assert rebinds(path.read_text()) == []
    assert len(path.read_text().splitlines()) <= 500


def test_the_guards_can_fail():
    assert wrong_imports("schedules.curves", "from .phases import anneal_schedule") == ["schedules.phases"]
    assert wrong_imports("schedules.curves", "from ..engine.lanes import row") == ["engine.lanes"]
    assert wrong_imports("engine.jobs", "from ..finder import suggest") == ["finder.suggest"]
    assert wrong_imports("finder.find", "from ..engine.sweep import sweep\nfrom .. import checks") == []
    assert wrong_imports("finder.curve", "from .. import plots") == ["plots"]
    assert wrong_imports("finder.curve", "def plot():\n    from .. import plots") == []
    assert rebinds("def f():\n    global x\n    x = 1") == [2]


def test_tests_mirror_the_folders():
    tests = pathlib.Path(__file__).parent
    assert {name for name, modules in ROOMS.items() if modules} <= {path.name for path in tests.iterdir()}


def test_only_two_rooms_import_matplotlib_and_flax():
    for name, room in (("matplotlib", "plots"), ("flax", "nnx")):
        users = {
            room_of(path)
            for path in rooms()
            if f"import {name}" in path.read_text().replace("from ", "import ")
        }
        assert users <= {room}


def exported(source):
    """The names that an `__init__` imports, each as itself."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.level]
    aliases = [alias for node in nodes for alias in node.names]
    assert all(alias.asname == alias.name for alias in aliases)
    return [alias.name for alias in aliases]


def test_public_surface_is_what_is_declared():
    names = exported((PACKAGE / "__init__.py").read_text())
    assert len(names) == len(set(names)) and set(names) == PUBLIC
    of_folders = [name for path in PACKAGE.glob("*/__init__.py") for name in exported(path.read_text())]
    assert len(of_folders) == len(set(of_folders)) and set(of_folders) <= PUBLIC
    for name, function in public_functions():
        assert inspect.getdoc(function), name


def test_the_functions_of_nnx_are_what_is_declared():
    tree = ast.parse((PACKAGE / "nnx.py").read_text())
    defined = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    }
    assert set(defined) == PUBLIC_NNX
    assert all(">>>" in ast.get_docstring(node) for node in defined.values())


def test_import_is_light():
    heavy = "matplotlib flax orbax chex sklearn scipy.stats tqdm jax.extend jaxtyping numpy.typing".split()
    code = (
        f"import sys, jax, optax; before = set(sys.modules); import optax_lr; "
        f"print(*[m for m in {heavy} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError, match="learning_rates"):
        olr.LRCurve(np.zeros((2, 2)), np.zeros((1, 2, 3)), None, np.zeros(0, int), np.zeros((1, 2), int))
