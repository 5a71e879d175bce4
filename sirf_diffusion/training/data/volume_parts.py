"""Builds that survive being killed: every volume is a small file of its own until all are there.

HDF5 files that are being written do not survive a kill. So each finished volume becomes ``OUT.parts/<key>.h5``, and the
file itself is put together at the end, in one go. The same command continues where it was; during the last step the
disk holds the data twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files.atomic import atomic_path, new_hdf5
from ...files.documents import parse_json
from ...files.lock import LOCK, locked
from ...files.outputs import difference, jsonable, write_json
from ...files.versions import KEY, read_record
from .manifest import assign_splits
from .volume_file import open_checked, rejected_inputs
from .volumes import Volume, root_attributes, write_group

_SETTINGS, _ASSEMBLED = "settings.json", "assembled.json"
_EXISTS = "--add adds to it, --overwrite replaces it"
#: What is hashed for the file to tell whether a key is its own.
_KEY_CHECK = "the key of this file"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one input: its place in the list (from 1), its name for the person at the terminal.

    ``status`` is ``used``, ``used in part`` or ``left out``; ``reason`` says why, or what is missing.
    """

    number: int
    name: str
    status: str
    reason: str = ""


class NothingUsable(ValueError):
    """No input became a volume; ``outcomes`` tells why."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__(f"none of the {len(outcomes)} inputs can be used: no file was written")
        self.outcomes = outcomes


class PartStore:
    """Finished volumes of one build, and the file that they become; to be used inside ``with store.held():``.

    Parameters
    ----------
    out, kind
        The file to build (``.h5``), of ``images`` or ``phantoms``.
    settings, voxel_size
        What the data depend on, as JSON values without names or paths, and ``(z, y, x)`` in mm: written into the file,
        and compared when a build is continued.
    key
        Secret that names are hashed with; default a random one that is forgotten when the file is complete. To add to a
        file, it must be the one that this was built with.
    """

    def __init__(
        self, out: str | os.PathLike[str], kind: str, settings: Mapping[str, Any], voxel_size: Sequence[float], *,
        add: bool = False, overwrite: bool = False, key: bytes | None = None, restart: bool = False,
    ) -> None:  # fmt: skip
        self.out, self.kind, self.add, self.restart = Path(out), kind, add, restart
        self.key = key or b""
        self.voxel_size = tuple(float(v) for v in voxel_size)
        self.settings = jsonable({"kind": kind, "voxel_size": self.voxel_size, **settings})
        self.folder = self.out.with_name(self.out.name + ".parts")
        if self.out.suffix not in (".h5", ".hdf5"):
            raise ValueError(f"--out {self.out}: training data are HDF5 files; give a name that ends in .h5")
        self.outcomes: list[Outcome] | None = None
        self.replaces, self._finished = add or overwrite, None if restart else self._earlier()
        if self.out.exists() and not self.replaces and self._finished is None:
            raise ValueError(f"{self.out} exists: {_EXISTS}")
        if add:
            if not self.out.exists():
                raise ValueError(f"{self.out} does not exist: there is nothing to add to; leave out --add")
            with open_checked(self.out) as file:
                self._compare(parse_json(file.attrs["settings"]), f"{self.out}")
                known = file.attrs.get("key_check")
            if known is None and key is not None:
                logger.warning("%s does not tell the --key that it was built with: if it is another, a subject may be "
                               "in training and test; build it anew to be sure", self.out)  # fmt: skip
            elif key is None or known != self.hashed(_KEY_CHECK):
                raise ValueError(
                    f"{self.out}: --add needs the --key that the file was built with: without, subjects that it has "
                    "already are not recognised, and may be in training and test. A file that was built without a key "
                    "cannot be added to"
                )

    @contextmanager
    def held(self) -> Iterator[PartStore]:
        """Have the parts for this process alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder / LOCK, ValueError):
                if self.restart:
                    self._forget()
                self.key = self._take_up(self.key or None)
                yield self
                if self.outcomes is not None:
                    self._forget()
        finally:
            with suppress(OSError):  # parts that are needed still
                self.folder.rmdir()

    def finished(self, inputs: Sequence[tuple[str, str]], fractions: Sequence[float], seed: int) -> bool:
        """Whether an earlier run of the same command was cut off when the file was in place; then it has `outcomes`.

        Raises
        ------
        ValueError
            If it was another command, and ``out`` is not to be added to or replaced.
        """
        if self._finished is None:
            return False
        if self._finished["of"] == self._digest(inputs, fractions, seed):
            self.outcomes = [Outcome(**outcome) for outcome in self._finished["outcomes"]]
            return True
        if not self.replaces:
            raise ValueError(f"{self.out} exists: {_EXISTS}")
        self._forget()
        self._take_up(self.key)
        return False

    def _forget(self) -> None:
        """Remove the parts. What says that the file is there goes last: the next command finishes what is cut off."""
        kept = [self.folder / name for name in (LOCK, _ASSEMBLED, _SETTINGS)]
        for part in (*(path for path in self.folder.iterdir() if path not in kept), *kept[1:]):
            part.unlink(missing_ok=True)

    def hashed(self, text: str) -> str:
        """Keyed hash of a name: the same in one build, of no use to guess the name from."""
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:16]

    def done(self, key: str) -> bool:
        """Whether this input has been dealt with, one way or the other."""
        return self._part(key).exists()

    def write(self, key: str, volume: Volume) -> None:
        """Keep a finished volume."""
        with new_hdf5(self._part(key)) as file:
            write_group(file, volume)

    def reject(self, key: str, reason: str) -> None:
        """Remember that an input was left out."""
        with new_hdf5(self._part(key)) as file:
            file.attrs["reason"] = reason

    def assemble(self, inputs: Sequence[tuple[str, str]], fractions: Sequence[float], seed: int) -> list[Outcome]:
        """Put the file together from inputs ``(key, name)``, all dealt with, and remove the parts.

        Subjects are split by `assign_splits`.
        """
        import h5py

        outcomes: list[Outcome] = []
        rejected: list[tuple[int, str, str]] = []
        whole = self.folder / "whole.h5"  # in here: what a kill leaves behind is removed with the parts
        with new_hdf5(whole) as file:
            volumes = file.create_group("volumes")
            known: dict[str, tuple[str, str]] = {}
            if self.add:
                with open_checked(self.out) as old:
                    for name in sorted(old["volumes"]):
                        old.copy(old["volumes"][name], volumes, name)
                        there = volumes[name].attrs
                        told = "duplicate of a volume that the file has already"
                        known[there["data_sha256"]] = told, there["subject"]
                rejected += rejected_inputs(self.out)
            for number, (key, name) in enumerate(inputs, start=1):
                with h5py.File(self._part(key)) as part:
                    reason = part.attrs.get("reason", "")
                    if not reason and part.attrs["data_sha256"] in known:
                        reason, subject = known[part.attrs["data_sha256"]]
                        if subject != part.attrs["subject"]:
                            reason += " of another subject: one person under two names may be in two splits"
                            logger.warning("%s: %s. Give both the same name (--manifest)", name, reason)
                    if reason:
                        rejected.append((number, self.hashed(str(Path(name).resolve())), reason))
                        outcomes.append(Outcome(number, name, "left out", reason))
                        continue
                    known[part.attrs["data_sha256"]] = f"duplicate of input {number}", part.attrs["subject"]
                    part.copy(part, volumes, f"{len(volumes):05d}")
                    notes = part.attrs["notes"]
                    outcomes.append(Outcome(number, name, "used in part" if "left out" in notes else "used", notes))
            if len(volumes):
                taken = [o.name for o in outcomes if o.status != "left out"]
                self._finish(file, [""] * (len(volumes) - len(taken)) + taken, rejected, fractions, seed)
        if all(o.status == "left out" for o in outcomes) and not self.add:
            self._forget()  # the same command looks at the inputs anew, which may be mended by then
            raise NothingUsable(outcomes)
        told = {"of": self._digest(inputs, fractions, seed), "outcomes": [asdict(o) for o in outcomes]}
        write_json(self.folder / _ASSEMBLED, {"file": _identity(whole), **told})
        os.replace(whole, self.out)
        self.outcomes = outcomes
        return outcomes

    def _earlier(self) -> dict[str, Any] | None:
        """What an earlier run left that was cut off when the file was in place already."""
        try:
            content = read_record(self.folder / _ASSEMBLED)
            return content if content["file"] == _identity(self.out) and {"of", "outcomes"} < content.keys() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _digest(self, inputs: Sequence[tuple[str, str]], fractions: Sequence[float], seed: int) -> str:
        """What the file is made of; `hashed`, so that names cannot be guessed from it."""
        return self.hashed(json.dumps([self.settings, [list(i) for i in inputs], list(map(float, fractions)), seed]))

    def _part(self, key: str) -> Path:
        return self.folder / f"{key}.h5"

    def _finish(
        self, file: Any, names: Sequence[str], rejected: list[tuple[int, str, str]], fractions: Sequence[float],
        seed: int,
    ) -> None:  # fmt: skip
        import h5py

        groups = [file["volumes"][name] for name in sorted(file["volumes"])]
        fixed: dict[str, str] = {}
        for group, name in zip(groups, names, strict=True):
            wanted = group.attrs["split"]
            if wanted and fixed.setdefault(group.attrs["subject"], wanted) != wanted:
                raise ValueError(
                    f"{name or 'a volume of the file'} is to be in {wanted}, others of its subject are in "
                    f"{fixed[group.attrs['subject']]}: a model is not to be judged on subjects that it was trained on. "
                    "Correct the column 'split'"
                )
        splits = assign_splits([g.attrs["subject"] for g in groups], fractions, seed, fixed)
        for group in groups:
            group.attrs["split"] = splits[group.attrs["subject"]]
        file.attrs.update(root_attributes(self.kind, self.voxel_size))
        file.attrs["settings"] = json.dumps(self.settings, sort_keys=True)
        file.attrs["key_check"] = self.hashed(_KEY_CHECK)
        table = file.create_group("rejected")
        table["number"] = np.asarray([r[0] for r in rejected], np.int64)
        for column, name in ((1, "source"), (2, "reason")):
            texts = [r[column] for r in rejected]
            table.create_dataset(name, (len(texts),), h5py.string_dtype(), data=texts)

    def _take_up(self, key: bytes | None) -> bytes:
        """The key of these parts: that of an earlier run, else a new one. Compares the settings."""
        record = self.folder / _SETTINGS
        if record.exists():
            try:
                content = read_record(record)
                settings, earlier = dict(content["settings"]), bytes.fromhex(content["key"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.folder}, an unfinished build: {error}; remove it to begin anew") from error
            self._compare(settings, f"{self.folder}, an unfinished build,")
            if key is not None and key != earlier:
                raise ValueError(f"{self.folder} was begun with another --key: give that one, or remove the folder")
            return earlier
        key = key or secrets.token_bytes(32)
        with atomic_path(record) as temporary:
            temporary.touch(0o600)
            temporary.write_text(json.dumps({KEY: 1, "settings": self.settings, "key": key.hex()}), encoding="utf-8")
        return key

    def _compare(self, found: dict[str, Any], where: str) -> None:
        if other := difference(found, self.settings):
            raise ValueError(
                f"{where} was made with other settings: {other}; give the same, another --out, or --restart"
            )


def _identity(path: Path) -> list[int]:
    """What a file keeps when it is renamed, and shares with no other."""
    state = path.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns]
