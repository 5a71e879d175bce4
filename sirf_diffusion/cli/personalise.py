"""``sirf-diffusion personalise``: a score model for one patient's anatomy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import add_command, add_machine, add_workers, bars, options_of, real, seed, whole

_ABOUT = """\
Make a score model for one patient's anatomy: the MRs of a bank of subjects with PET and MR are registered to the
patient's MR, their PETs carried along and mixed to pseudo-PETs, and a model of the population is trained further on
them, beside the mean of the PETs, which is kept in the file with its place. The model is used as any other (recon
--model, ScorePrior, a parameter file) where the patient lies as in the MR; if not, give recon --anatomical MR
--register emission. No MR enters the network.

Members of the bank whose registration fails (folds, mutual information, inverse, overlap, similarity) are left out,
with the reason; with good ones of fewer than --min-members subjects no model is made. Look at the page of --report
before you trust the model.

A run that was stopped goes on when the same command is given again, and gives the same model: FILE.personalise holds
what it needs, and may be removed afterwards. On a cluster, all paths must mean the same files everywhere.
"""


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands, common, "personalise", run, summary="make a score model for one patient's anatomy", about=_ABOUT,
        example="sirf-diffusion personalise --bank bank.h5 --mr T1.nii.gz --out patient.safetensors "
        "--report report",
    )  # fmt: skip
    parser.add_argument("--bank", type=Path, required=True, metavar="B.h5", help="PET and MR, of `sirf-diffusion data`")
    parser.add_argument(
        "--mr", type=Path, required=True, metavar="FILE", help="the patient's: NIfTI, Interfile, or a DICOM folder"
    )
    parser.add_argument(
        "--model", default="brain-fdg-mr", metavar="NAME|FILE", help="model of the population; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model file (.safetensors) to write")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with figures")
    making = parser.add_argument_group("how it is made")
    making.add_argument(
        "--pseudo-pets", type=whole(9, 10_000), default=90, metavar="N", help="mixtures; default: %(default)d"
    )
    making.add_argument(
        "--min-members", dest="least_members", type=whole(2), default=6, metavar="N",
        help="subjects of the bank that must be registered well; default: %(default)d",
    )  # fmt: skip
    making.add_argument("--steps", type=whole(), default=1200, metavar="N", help="of training; default: %(default)d")
    making.add_argument("--batch-size", type=whole(1, 4096), default=8, metavar="N", help="default: %(default)d")
    making.add_argument("--learning-rate", type=real(0, 1), default=4e-4, metavar="R", help="default: %(default)g")
    making.add_argument(
        "--transverse", action="store_true", help="train on transverse slices alone, for data of single planes"
    )
    making.add_argument(
        "--rank", type=whole(0, 4096), default=0, metavar="R",
        help="train low-rank changes of the weights (LoRA) of this rank; default: 0, all weights",
    )  # fmt: skip
    making.add_argument(
        "--quick-registration", action="store_true", help="on voxels twice as large: faster, less sharp"
    )
    making.add_argument("--seed", type=seed, default=0, metavar="S", help="default: 0")
    group = parser.add_argument_group("run")
    add_workers(group)
    add_machine(group)
    group.add_argument("--restart", action="store_true", help="begin anew, whatever an earlier run kept")


def run(arguments: argparse.Namespace) -> int:
    """Register, mix, train, report."""
    from ..personalise.pipeline import PersonalOptions, personalise
    from ..personalise.report import check_report, write_report
    from ..study.execution import Execution

    if arguments.report is not None:
        check_report(arguments.report)
    with bars() as progress:
        made = personalise(
            arguments.bank, arguments.mr, arguments.out, model=arguments.model,
            options=options_of(PersonalOptions, arguments),
            execution=Execution(arguments.workers, arguments.cluster), device=arguments.device,
            restart=arguments.restart, progress=progress,
        )  # fmt: skip
    left_out = [member for member in made.members if member.reason]
    print(f"{arguments.out}: made of {len(made.members) - len(left_out)} of {len(made.members)} members of the bank")
    for member in left_out:
        print(f"member {member.number} was left out: {member.reason}")
    if arguments.report is not None:
        print(f"report: {write_report(made, arguments.model, arguments.report)}")
    return 0
