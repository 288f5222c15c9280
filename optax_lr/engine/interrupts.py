"""Ctrl-C while a search is under way: it is noted, calls end, state is saved, nothing is torn."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupts:
    """What notes Ctrl-C in place of the user's own handler, from `listening` on.

    Only the main thread hears signals, and what is ignored stays ignored.

    Attributes:
      heard: whether there was one.
    """

    def __init__(self) -> None:
        self.heard, self._listens, self._own = False, False, signal.getsignal(signal.SIGINT)
        self._stop = threading.Event()

    def stop(self) -> threading.Event:
        """What workers look at while they make calls: set by the next Ctrl-C, or by an error of theirs."""
        self._stop = threading.Event()
        if self.heard:
            self._stop.set()
        return self._stop

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note every Ctrl-C meanwhile."""
        self._own = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        self._listens = main and self._own not in (None, signal.SIG_IGN)
        with self._handled_by(self._note):
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave Ctrl-C to the user's handler, in a function of the user's; what it raises is noted."""
        with contextlib.suppress(KeyboardInterrupt), self._handled_by(self._own):
            try:
                yield
            except KeyboardInterrupt:
                self._note()
                raise

    @contextlib.contextmanager
    def _handled_by(self, handler: object) -> Iterator[None]:
        if not self._listens:
            yield
            return
        before = signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, *_: object) -> None:
        self.heard = True
        self._stop.set()
