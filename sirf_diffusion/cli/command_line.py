"""What the commands ``sirf-diffusion`` and ``stir-diffusion`` share: common options, logging, errors and exit codes.

What a user can put right (a file, a value, a missing package) is one message on stderr and exit code 2; what nobody
foresaw is one too, with exit code 1. Only ``--debug`` shows a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NoReturn, TextIO, TypeVar

from ..geometry.checks import LARGEST_COUNT, LARGEST_SEED, check_count, check_real

T = TypeVar("T")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTERRUPTED = 130
USER_ERROR = 2
FAULT = 1
#: What a user can put right.
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError)


class _Help(argparse.HelpFormatter):
    """Examples, and texts of several lines, as they are: a command that is broken into lines cannot be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text or text.startswith("example") else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({"formatter_class": _Help} | options))

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (--help lists the options)\n")


def common_options() -> argparse.ArgumentParser:
    """Parent parser of all sub-commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say more of what is done")
    common.add_argument("--debug", action="store_true", help="say everything, and show a traceback on errors")
    return common


def add_command(
    commands: Any,
    common: argparse.ArgumentParser,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    *,
    summary: str,
    about: str,
    example: str,
) -> argparse.ArgumentParser:
    """Declare a sub-command: a line for the list of commands, a description, and an example (or several lines).

    One that has sub-commands of its own has no ``run``.
    """
    epilog = f"examples:\n{example.rstrip()}" if "\n" in example else f"example: {example}"
    parser = commands.add_parser(name, parents=[common], help=summary, description=about, epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def whole(minimum: int = 1, maximum: int = LARGEST_COUNT) -> Callable[[str], int]:
    """Type of an option that is an integer."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text) else text
        return _checked(lambda: check_count("it", number, minimum, maximum))

    return parse


def seed(text: str) -> int:
    """Type of an option that is a seed."""
    return whole(0, LARGEST_SEED)(text)


def real(minimum: float, maximum: float) -> Callable[[str], float]:
    """Type of an option that is a finite number."""

    def parse(text: str) -> float:
        number = float(text) if _NUMBER.fullmatch(text) else text
        return _checked(lambda: check_real("it", number, minimum, maximum))

    return parse


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error!s:.200}") from error


def options_of(kind: type[T], arguments: argparse.Namespace) -> T:
    """The dataclass of options whose names are those of the parsed ones."""
    values = {item.name: getattr(arguments, item.name) for item in fields(kind) if hasattr(arguments, item.name)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def add_machine(parser: argparse._ActionsContainer) -> None:
    """Declare ``--device`` and ``--threads``."""
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    threads = "CPU threads, of all workers; default: as PyTorch has"
    parser.add_argument("--threads", type=whole(1, 4096), metavar="N", help=threads)


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Declare ``--workers`` and ``--cluster``."""
    parser.add_argument(
        "--workers", type=whole(1, 4096), default=1, metavar="N", help="processes of this machine; default: 1"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler instead, such as tcp://host:8786")


def add_precision(parser: argparse._ActionsContainer, default: str = "auto") -> None:
    """Declare ``--precision``, see `ScoreModel.load`."""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default=default,
        help="of the network: bfloat16 takes 0.6 of its time on processors made for it and changes images by about "
        "0.1 %%; auto is the faster one here; default: %(default)s",
    )


def run_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, loggers: tuple[str, ...],
    user_errors: tuple[type[Exception], ...],
) -> int:  # fmt: skip
    """Parse ``argv`` (default: the process's) and call ``arguments.run(arguments)``; returns the exit code.

    Parameters
    ----------
    parser
        Of options with those of `common_options` and ``command`` among them; ``threads``, if there, is obeyed.
    loggers
        Loggers to open as far as ``--verbose`` and ``--debug`` say; warnings go to the first.
    user_errors
        Exceptions that become one message, unless ``--debug`` is given.
    """
    with outlived("stdout"):  # help and lists may be read by `head`
        arguments = parser.parse_args(argv)
    # Other libraries' debug messages would bury ours: only our own loggers are opened.
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    level = logging.DEBUG if arguments.debug else logging.INFO if arguments.verbose else logging.WARNING
    for name in loggers:
        logging.getLogger(name).setLevel(level)

    def log_warning(message: Warning | str, *where: object, **more: object) -> None:
        logging.getLogger(loggers[0]).warning("%s", message)

    from ..files.stopping import stoppable

    try:
        if getattr(arguments, "threads", None) is not None:
            from ..environment import limit_threads

            limit_threads(arguments.threads)
        with outlived("stdout"), outlived("stderr"), warnings.catch_warnings(), stoppable():
            warnings.showwarning = log_warning
            return arguments.run(arguments)
    except KeyboardInterrupt as stop:
        if arguments.debug:
            traceback.print_exc()
        print(f"\n{stop or 'interrupted'}", file=sys.stderr)
        return getattr(stop, "exit_code", INTERRUPTED)
    except Exception as error:
        message = _out_of_memory(error)
        if message is None and isinstance(error, user_errors):
            message = _one_message(error)
        if arguments.debug:
            raise
        code = FAULT if message is None else USER_ERROR
        if message is None:
            message = f"{type(error).__name__}: {_one_message(error)}. This is a fault of sirf-diffusion itself: "
            message += "please report it, with what --debug shows"
        print(f"{parser.prog} {arguments.command}: error: {message}", file=sys.stderr)
        return code


def leave(code: int) -> NoReturn:
    """End the process; after Ctrl-C by its signal, without which a shell would go on with the next turn of a loop."""
    if code == INTERRUPTED:
        sys.excepthook = lambda *error: None
        raise KeyboardInterrupt
    sys.exit(code)


@contextmanager
def outlived(name: str) -> Iterator[None]:
    """Let ``sys.stdout`` or ``sys.stderr`` take its text also if the reader (head, less) has gone: the work goes on."""
    stream = getattr(sys, name)
    if stream is None:
        yield
        return
    patient = _Patient(stream)
    setattr(sys, name, patient)
    try:
        yield
    finally:
        patient.flush()
        setattr(sys, name, stream)


class _Patient:
    """A stream that goes on into nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to a reader, if there is one."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


def _one_message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return " ".join(str(error).split("\n")) or type(error).__name__


def _out_of_memory(error: Exception) -> str | None:
    """One line if that is what it is: PyTorch has several errors for it."""
    words, kind = " ".join(str(error).split()), type(error).__name__
    told = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
    known = isinstance(error, MemoryError) or kind == "OutOfMemoryError"
    if not known and not (isinstance(error, (RuntimeError, OSError)) and any(text in words.lower() for text in told)):
        return None
    return f"out of memory ({words[:160] or kind}): take a smaller batch, fewer samples or workers, or a smaller image"


@contextmanager
def bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Bars with the time left, one after the other: given a stage's name and its parts, what to call after each."""
    from ..files.progress import progress_bar

    opened: list[Any] = []

    def begin(stage: str, total: int) -> Callable[[], None]:
        while opened:
            opened.pop().close()
        opened.append(progress_bar(total, stage))
        return opened[0].update

    try:
        yield begin
    finally:
        while opened:
            opened.pop().close()
