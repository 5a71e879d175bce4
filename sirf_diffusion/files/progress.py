"""How far long work is: a bar in a terminal or a notebook, a line now and then in the log of a batch system."""

from __future__ import annotations

import io
import sys
from typing import Any

#: Between two lines of a log; work that ends sooner writes none.
LINE_SECONDS = 30.0


class Kept(io.StringIO):
    """Standard error that is shown later, all at once: how far the work is has no place in it."""

    is_kept = True


def progress_bar(total: float, what: str, unit: str = "step", **options: Any) -> Any:
    """Give a ``tqdm`` bar with the time left (``options`` are its own), which writes to standard error."""
    from tqdm.auto import tqdm

    if getattr(sys.stderr, "is_kept", False):
        return tqdm(total=total, disable=True, **options)
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(total=total, desc=what, unit=unit, **options)

    class Lines(tqdm):
        monitor_interval = 0  # no thread that watches it

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            self.fp.write(f"{msg or self}\n")

        def close(self) -> None:
            self.disable = True
            super().close()

    rarely: dict[str, Any] = {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 0, "ncols": 0}
    return Lines(total=total, desc=what, unit=unit, **rarely, **options)
