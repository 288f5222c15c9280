"""What a user types passes a strict type checker on the user's side: every block of the README."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
# Functions of one's own without annotations are the user's choice, and Optax ships no types.
CONFIG = """
[mypy]
strict = true
disallow_untyped_defs = false
disallow_untyped_calls = false
disallow_incomplete_defs = false
[mypy-optax.*,flax.*]
ignore_missing_imports = true
"""


def checked(folder, blocks):
    (folder / "mypy.ini").write_text(CONFIG)
    for at, block in enumerate(blocks):
        (folder / f"block{at}.py").write_text(block)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "readme"), "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"MYPYPATH": str(ROOT)})


def test_the_blocks_of_the_readme_pass_mypy_strict(tmp_path):
    done = checked(tmp_path, BLOCKS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_checker_sees_what_is_wrong(tmp_path):
    wrong = "import optax_lr as olr\nolr.nnx.lr_fnd\nolr.one_cycle_schedule('a', 3)\n"
    done = checked(tmp_path, [wrong])
    assert "lr_fnd" in done.stdout and "incompatible type" in done.stdout, done.stdout + done.stderr
