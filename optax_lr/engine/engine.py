"""The session of a search: its table, its compiled programs, its folder, its bar, and Ctrl-C.

with engine.open(task, data, ...) as session:
    while not session.stopped and (plan := policy(session.runs)) is not None:
        session.run(plan, "coarse rates")
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from .. import checks
from .batches import Data
from .checkpoints import Folder
from .opening import Opening
from .progress import Bar
from .session import Session
from .task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """How and where a search runs; none of it changes its answer.

    Attributes:
      lanes_at_once: how many lanes ride in one `vmap` on each device. "auto": on an accelerator as many as its
        memory holds, in equal chunks; on one CPU device one lane a core, on host threads; on several one each.
      mesh: the devices that lanes are split over, whatever its axes; all of them by default, on all hosts, and
        every host gets the whole result. Parameters that you have placed on a mesh, replicated ones too, stay where
        they are, and all devices of that mesh work on each lane. Lanes go one after the other there; "auto" puts
        several into one `vmap` if what they share (a frozen backbone) is larger than what they have of their own
        (adapters and their moments), and a number as many as it says.
      checkpoint: a directory. State is saved there before and after each round of runs, every 10 seconds between,
        and on Ctrl-C. The same call goes on from there, to the bits of an undisturbed search.
      progress: whether a bar shows steps, runs alive and the best loss on stderr, where there is a terminal; and
        whether a search that goes on from a checkpoint says so there first, with or without a terminal.
      on_round: called after each round of runs, on the first host: for a log, W&B or TensorBoard. It gets a list of
        dicts of numbers and words, one for each run: `description`, `round`, `seed`, `steps`, how many were `done`,
        why it `stopped` ("" if it did not), the hyperparameters of its lane, its last `loss` and metrics, and the
        last of each validation under `eval_` and the name. A search that goes on from a checkpoint tells of the
        rounds that it ends itself.

    A search holds its batches once, and carries: parameters, model state and optimizer state. It holds two carries
    for each worker, or one for each lane and seed that ride at once, and shares the leaves that no step changes.
    What it returns has the parameters and the model state of one run.

    Raises:
      ValueError: `lanes_at_once` is neither "auto" nor a whole number of at least 1, `checkpoint` is no path, or
        `on_round` is no function.
    """

    lanes_at_once: int | Literal["auto"] = "auto"
    mesh: Mesh | None = None
    checkpoint: str | os.PathLike | None = None
    progress: bool = True
    on_round: Callable[[list[dict[str, Any]]], object] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lanes_at_once, str) and self.lanes_at_once != "auto":
            raise ValueError(
                f'lanes_at_once must be "auto" or a whole number of lanes, got {self.lanes_at_once!r}.'
            )
        if self.lanes_at_once != "auto":
            checks.size("lanes_at_once", self.lanes_at_once, unit="lanes")
        if not isinstance(self.checkpoint, str | os.PathLike | None):
            raise ValueError(f"checkpoint must be the path of a directory, got {self.checkpoint!r}.")
        if self.on_round is not None and not callable(self.on_round):
            raise ValueError(f"on_round must be a function of a list of runs, got {self.on_round!r}.")

    @contextlib.contextmanager
    def open(self, task: Task, data: Data, opening: Opening) -> Iterator[Session]:
        """A session; when it ends, its state is saved and its memory is free."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.transfer_guard("allow"))
            folder = None if self.checkpoint is None else Folder(self.checkpoint)
            if folder is not None:
                stack.enter_context(folder.locked())
            bar = stack.enter_context(Bar(opening.description, self.progress))
            session = Session(self, task, data, opening, folder, bar)
            stack.enter_context(session.interrupts.listening())
            yield session
