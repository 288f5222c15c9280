"""Try what `make dist` built: what the archives hold, and README's blocks with the wheel in a bare environment."""

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "optax_lr").rglob("*.py")}
BESIDE = ("tests/", "examples/", "benchmarks/", "docs/", ".ci/", ".github/")


def archives():
    """The wheel and the sdist, one of each."""
    (wheel,), (sdist,) = ((ROOT / "dist").glob(kind) for kind in ("*.whl", "*.tar.gz"))
    return wheel, sdist


def names_in(wheel, sdist):
    """What each holds, by the paths of this repository."""
    with zipfile.ZipFile(wheel) as file:
        in_wheel = set(file.namelist())
    with tarfile.open(sdist) as file:
        in_sdist = {name.split("/", 1)[-1] for name in file.getnames()}
    return in_wheel, in_sdist


def check_names(in_wheel, in_sdist):
    """Every module, the marker of types, licence and changelog; and nothing that stands beside the package."""
    for kind, names in {"wheel": in_wheel, "sdist": in_sdist}.items():
        missing = (MODULES | {"optax_lr/py.typed"}) - names
        missing |= {word for word in ("LICENSE", "CHANGELOG.md") if not any(n.endswith(word) for n in names)}
        extra = sorted(name for name in names if name.startswith(BESIDE))
        if missing or extra:
            sys.exit(f"The {kind} lacks {sorted(missing)} and should not have {extra}.")
        print(f"{kind}: {len(names)} files")


def check_readme(wheel):
    """README's Python blocks, each in a process of its own, where nothing but the wheel is installed."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = pathlib.Path(folder) / "bin" / "python"
        install = [python, *"-m pip install --quiet --no-compile".split()]
        subprocess.run([*install, f"optax-lr[flax,plots] @ {wheel.as_uri()}"], check=True, cwd=folder)
        for block in blocks:
            subprocess.run([python, "-I", "-c", block], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        where = "import optax_lr; print(optax_lr.__version__, optax_lr.__file__)"
        subprocess.run([python, "-I", "-c", where], check=True, cwd=folder)
    print(f"{len(blocks)} blocks of the README ran")


def main():
    wheel, sdist = archives()
    check_names(*names_in(wheel, sdist))
    check_readme(wheel)


if __name__ == "__main__":
    main()
