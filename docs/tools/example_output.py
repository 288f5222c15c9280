"""What an example prints, for the page that shows it: as `make examples` kept it, or from a run of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
KEPT = ROOT / "out" / "examples"


def output(name: str) -> str:
    """A fence with the words of `examples/NAME.py`, without how long it took and where its pictures are."""
    script, kept = ROOT / "examples" / f"{name}.py", KEPT / f"{name}.txt"
    if not kept.exists() or kept.stat().st_mtime < script.stat().st_mtime:
        here = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
        done = subprocess.run(
            [sys.executable, script], cwd=ROOT, env=here, check=True, stdout=subprocess.PIPE, text=True
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    lines = [line for line in kept.read_text().rstrip().splitlines() if not _is_aside(line)]
    return f"`python examples/{name}.py` printed:\n\n```text\n" + "\n".join(lines).strip() + "\n```\n"


def _is_aside(line: str) -> bool:
    return line.startswith("Picture") or (line.endswith(" s") and line[:-2].strip().isdigit())
