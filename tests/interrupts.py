"""Ctrl-C for child processes, also where the tests run in the background and interrupts are ignored."""

import signal


def heed_interrupts() -> None:
    """To be given to ``subprocess.Popen`` as ``preexec_fn``: an ignored signal stays ignored in a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
