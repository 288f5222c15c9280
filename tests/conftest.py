"""What every test runs under: shapes checked by beartype, one compilation cache, eager warnings as errors."""

import importlib
import os
import pathlib
import sys
import typing
from types import ModuleType
from unittest import mock

import jax
import pytest
import typecheck  # noqa: F401  # beartype, before TYPE_CHECKING is patched
from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _load_all(package: ModuleType) -> None:
    """Load what the package would load late, while its imports are the right ones."""
    for name in set(package.__all__) - {"nnx", "plots"}:
        getattr(package, name)


# `optax_lr.types` has shapes for type checkers alone.
with install_import_hook("optax_lr", "typecheck.check"), mock.patch.object(typing, "TYPE_CHECKING", True):
    import optax_lr

    _load_all(optax_lr)


def _import_unhooked(name: str) -> ModuleType:
    """A second copy of the package, without the hook, so that bad input meets our own errors."""
    hooked = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "optax_lr"}
    try:
        module = importlib.import_module(name)
        _load_all(sys.modules["optax_lr"])
        return module
    finally:
        sys.modules.update(hooked)


@pytest.fixture(scope="session")
def unhooked() -> ModuleType:
    """`optax_lr` as users import it, without run-time checks of annotations."""
    module = _import_unhooked("optax_lr")
    assert module is not optax_lr
    return module


@pytest.fixture(scope="session")
def unhooked_nnx() -> ModuleType:
    """`optax_lr.nnx`, likewise."""
    return _import_unhooked("optax_lr.nnx")
