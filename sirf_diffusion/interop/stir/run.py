"""Running a parameter file by STIR's programs with this package's priors and filters built in."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stir_priors.build import PROGRAMS, Build, ShimError, find_builds

from .check import Report, check
from .python_blocks import ALLOW, FOLDERS

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_USAGE = {
    "OSMAPOSL": "stir-diffusion run OSMAPOSL FILE.par [KEY=VALUE ...]",
    "OSSPS": "stir-diffusion run OSSPS FILE.par [KEY=VALUE ...]",
    "postfilter": "stir-diffusion run postfilter OUTPUT INPUT FILE.par [KEY=VALUE ...]",
}


@dataclass(frozen=True)
class Call:
    """A program of STIR (``"OSMAPOSL"``, ``"OSSPS"``, ``"postfilter"``) with its parameter file.

    ``images`` are the output and input image of ``postfilter``, ``variables`` the values for ``${VAR}`` in the file.
    """

    program: str
    par: Path
    images: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, program: str, words: Sequence[str]) -> Call:
        """The call that the words of a command line make.

        Raises
        ------
        ValueError
            If the program is none of ours, or the words do not suit it.

        Examples
        --------
        >>> Call.parse("OSMAPOSL", ["a.par", "SEED=3"]).variables
        {'SEED': '3'}
        """
        if program == "KOSMAPOSL":
            raise ValueError(
                "KOSMAPOSL would give the priors kernel coefficients instead of activity: use OSMAPOSL with "
                "'prior type := Diffusion Score' instead of the kernel"
            )
        if program not in PROGRAMS:
            raise ValueError(f"there is no program {program!r}; choose from {', '.join(PROGRAMS)}")
        matches = [(word, None if Path(word).is_file() else _VARIABLE.fullmatch(word)) for word in words]
        variables = {match[1]: match[2] for _, match in matches if match}
        files = [word for word, match in matches if not match]
        if len(files) != (3 if program == "postfilter" else 1):
            raise ValueError(f"found {len(files)} file names; expected {_USAGE[program]}")
        return cls(program, Path(files[-1]), tuple(files[:-1]), variables)

    def check(self) -> Report:
        """Examine the parameter file, see `.check.check`; and that the input image is there."""
        report = check(self.par, program=self.program, variables=self.variables)
        if self.images and not Path(self.images[1]).is_file():
            raise FileNotFoundError(2, "no such image", self.images[1])
        return report

    def command(self) -> list[str]:
        """Executable and arguments.

        Raises
        ------
        ShimError
            If nothing is compiled.
        """
        return [str(find_build().program(self.program)), *self.images, str(self.par)]

    def environment(self) -> dict[str, str]:
        """The environment to run in: the variables, and where a Python prior's module is looked for if it may run."""
        folders = {FOLDERS: os.pathsep.join((str(self.par.resolve().parent), str(Path.cwd())))}
        return {**(folders if os.environ.get(ALLOW) else {}), **os.environ, **self.variables}

    def replace_process(self) -> None:
        """Become the program: Ctrl-C, other signals and the exit code are then its own. Does not return."""
        command, environment = self.command(), self.environment()
        sys.stdout.flush()
        sys.stderr.flush()
        # Python ignores this signal, and programs inherit that; STIR's should end when the reader of a pipe has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(command[0], command, environment)


def find_build() -> Build:
    """The newest build; that for the STIR that ``STIR_DIR`` names, if it is set and has one; ShimError without any."""
    builds = find_builds()
    if not builds:
        raise ShimError(
            "the programs are not compiled for this Python and this version of the package: run stir-diffusion build"
        )
    wanted = os.environ.get("STIR_DIR")
    if wanted:
        folder = Path(wanted).resolve()
        return next((b for b in builds if folder in (p := Path(b.stir_dir).resolve(), *p.parents)), builds[0])
    return builds[0]
