"""What HDF5 believes and does not survive: heaps without end, texts of 4 GB whatever the file's size, empty chunks."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_ATTRIBUTE, _CONTINUATION, _MOST_MESSAGES = 0x000C, 0x0010, 10_000
#: Classes of data types: what has its length in the file (texts of any length), and elsewhere.
_OF_ANY_LENGTH = 9
_CHECKSUM = 4
#: Larger files than this are not searched for heaps, in bytes: that takes as long as reading them.
_LARGEST_SCANNED = 2**32


def check_heaps(path: Path) -> None:
    """ValueError for a heap with free space of no size: HDF5 reads texts from heaps, and never comes back from that."""
    if not 0 < path.stat().st_size < _LARGEST_SCANNED:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b"GCOL\x01")
        while start >= 0:
            end = start + int.from_bytes(content[start + 8 : start + 16], "little")
            place = start + 16
            while place + 16 <= min(end, len(content)):
                size = int.from_bytes(content[place + 8 : place + 16], "little")
                step = 16 + size if any(content[place : place + 2]) else size
                if step < 16:
                    raise ValueError("a heap without end")
                place += -(-step // 8) * 8
            start = content.find(b"GCOL\x01", start + 5)


def check_chunks(dataset: Any) -> None:
    """ValueError for a chunk that holds no more than its checksum, with which HDF5 ends the process."""
    numbers = range(dataset.id.get_num_chunks() if dataset.chunks else 0)
    if any(dataset.id.get_chunk_info(number).size <= _CHECKSUM for number in numbers):
        raise ValueError("an empty chunk")


def longest_text(file: BinaryIO, owner: Any) -> int:
    """Bytes of the longest text of any length in the attributes of a group or file of h5py.

    ``file`` is the same file, opened for reading. Raises ValueError if the object's header is damaged. Only headers of
    version 1 are read, which this program writes (`new_hdf5`); others count as without texts. Format: HDF5 file format
    specification 3.0, IV.A.1.a and IV.A.2.m.
    """
    import h5py

    address = h5py.h5o.get_info(owner.id).addr
    return max((_length(message) for message in _attributes(file, address)), default=0)


def _attributes(file: BinaryIO, address: int) -> Iterator[bytes]:
    """Attribute messages of an object header, in all of its blocks."""
    version, _, _, _, size = struct.unpack("<BBHII", _read(file, address, 12))
    if version != 1:
        return
    blocks, number = [(address + 16, size)], 0
    while blocks:
        start, size = blocks.pop()
        content, place = _read(file, start, size), 0
        while place + 8 <= size and number < _MOST_MESSAGES:
            kind, length = struct.unpack_from("<HH", content, place)
            message, place, number = content[place + 8 : place + 8 + length], place + 8 + length, number + 1
            if kind == _CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", message))
            elif kind == _ATTRIBUTE:
                yield message
    if number >= _MOST_MESSAGES:
        raise ValueError("an object header without end")


def _length(message: bytes) -> int:
    """Length of the text of an attribute; 0 if it is none of any length."""
    version, _, name, data_type, space = struct.unpack_from("<BBHHH", message)
    if version not in (1, 3):
        raise ValueError(f"an attribute of version {version}, expected 1 or 3")
    sizes = [name, data_type, space]
    begin = 8 if version == 1 else 9
    places = [-(-n // 8) * 8 if version == 1 else n for n in sizes]
    if message[begin + places[0]] & 0x0F != _OF_ANY_LENGTH:
        return 0
    values = message[begin + sum(places) :]
    return max((n for n, _, _ in struct.iter_unpack("<IQI", values[: len(values) // 16 * 16])), default=0)


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    content = file.read(min(size, 2**24))
    if len(content) < size:
        raise ValueError("an object header that ends beyond the file")
    return content
