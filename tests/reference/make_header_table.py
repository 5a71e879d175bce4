"""Make ``header_table.csv``: variations of Interfile headers, what STIR's Python module reads, and what we read.

    PYTHONPATH=.:tests python tests/reference/make_header_table.py

A cell is ``=`` (as from the unchanged header), ``refused``, or the numbers that differ from those of the unchanged
header, ``place:value``. Needs STIR 6.5. Each file is read by a process of its own, as STIR may crash. With folders as
arguments (source trees of STIR and SIRF) their headers are compared instead, and nothing is written.
"""

import csv
import logging
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from header_variations import cell, cells_agree, our_numbers, stir_numbers, variations, write_base

TABLE = Path(__file__).with_name("header_table.csv")


def _guarded(function: Callable, *arguments) -> list[float] | None:
    try:
        return function(*arguments)
    except (ValueError, RuntimeError):
        return None


def _in_process(pipe, *arguments) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pipe.send(_guarded(stir_numbers, *arguments))


def read_by_stir(*arguments) -> list[float] | None:
    """None if it refuses, or crashes."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_in_process, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(20) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def compare_trees(folders: list[str]) -> None:
    """Headers of whole folders; absent data files are stood in for by zeros."""
    counts = {"equal": 0, "refused by both": 0, "refused by us": 0, "DIFFERENT": 0}
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "zeros").touch()
        os.truncate(Path(work) / "zeros", 8 << 30)  # takes no room on the disk
        for path in sorted(p for folder in folders for p in Path(folder).rglob("*.h[sv]")):
            kind = "image" if path.suffix == ".hv" else "projdata"
            copy = Path(work) / f"copy{path.suffix}"
            text = path.read_text(encoding="latin-1")
            copy.write_text(re.sub(r"(?im)^(!?name of data file *:=).*$", r"\1 zeros", text), encoding="latin-1")
            theirs, ours = read_by_stir(copy, kind, False), _guarded(our_numbers, copy, kind, False)
            agree = theirs is not None and ours is not None and cell(ours, theirs) == "="
            what = "equal" if agree else "DIFFERENT" if ours else "refused by us" if theirs else "refused by both"
            counts[what] += 1
            print(what, path, cell(ours, theirs) if what == "DIFFERENT" and theirs else "", sep=" | ")
    print(counts)


def main() -> None:
    """Write the table, and say where STIR and we differ."""
    import stir  # noqa: F401 - once, before the processes fork

    logging.disable(logging.CRITICAL)
    if len(sys.argv) > 1:
        compare_trees(sys.argv[1:])
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("image", "projdata"):
            header = write_base(Path(folder), kind)
            text = header.read_text(encoding="utf-8")
            base = stir_numbers(header, kind)
            for name, changed in variations(text):
                header.write_bytes(changed.encode())
                stir_cell = cell(read_by_stir(header, kind), base)
                our_cell = cell(_guarded(our_numbers, header, kind), base)
                rows.append((kind, name, stir_cell, our_cell))
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "variation", "STIR", "ours"), *rows])
    for row in rows:
        if row[3] != "refused" and not cells_agree(row[2], row[3]):
            print("DIFFERENT", *row, sep=" | ")
    refused = sum(row[3] == "refused" != row[2] for row in rows)
    print(f"{len(rows)} rows; {refused} that STIR reads and we refuse")


if __name__ == "__main__":
    main()
