"""Read the variables of a MATLAB file of level 5 (of MATLAB 5 to 7.2), as far as annotations of pictures need it: text,
real numbers, cell arrays and struct arrays. Source: "MAT-File Format", The MathWorks.

A file is a header of 128 bytes and elements: type, number of bytes, data. An element is a variable, compressed or not,
and a variable consists of elements again: flags, shape, name, then its data.
"""
import math
import struct
import zlib

import numpy as np

from dataset.base import DatasetError, shown

__all__ = ["read_matfile"]

HEADER_BYTES = 128
# Of a file, and of all its variables, unpacked. Those of Cars196 have 8 MB; a file with more is damaged or hostile.
MOST_BYTES = 1 << 26
MOST_DEPTH = 8  # of arrays in arrays
MATRIX, COMPRESSED = 14, 15  # types of elements
CELL, STRUCT, CHAR, NUMBERS = 1, 2, 4, range(6, 16)  # classes of arrays
# Types of elements that hold numbers, as NumPy calls them, and that hold text, as Python calls its encoding.
NUMBER_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


class _Damaged(Exception):
    """What is wrong with the file."""


def read_matfile(path, wanted):
    """Return {name: value} of the variables in the file ``path``, and of struct arrays only the fields ``wanted``.

    Text is a str, a number array a list of numbers, a cell array a list of values, a struct array a list of {field:
    value}; all in MATLAB's order, without their shape.

    Raises:
        DatasetError: the file can't be read, is damaged, is of another level or holds what is not known here.
    """
    try:
        with open(path, "rb") as file:
            return _variables(file.read(MOST_BYTES + 1), wanted)
    except OSError as error:
        raise DatasetError("{}: can't be read ({})".format(shown(path), error.strerror)) from None
    except (_Damaged, struct.error, ValueError, zlib.error) as error:  # ValueError: numbers or text that are cut off
        raise DatasetError("{}: no whole MATLAB file of level 5 ({}); get it again".format(
            shown(path), error)) from None


def _variables(content, wanted):
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER_BYTES - 2:HEADER_BYTES])  # as struct and NumPy call it
    if order is None:
        raise _Damaged("it has another beginning")
    variables, left = {}, MOST_BYTES - len(content)
    elements = _Elements(memoryview(content)[HEADER_BYTES:], order, wanted)
    while elements.left():
        kind, data = elements.next()
        if kind == COMPRESSED:
            if left <= 0:
                raise _Damaged("more than {} bytes".format(MOST_BYTES))
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, left)
            left -= len(data)
            if unpacker.unconsumed_tail:
                raise _Damaged("more than {} bytes".format(MOST_BYTES))
            kind, data = _Elements(memoryview(data), order, wanted).next()
        if kind != MATRIX:
            raise _Damaged("an element of type {} where a variable begins".format(kind))
        name, value = _array(_Elements(data, order, wanted))
        variables[name] = value
    return variables


class _Elements:
    """The elements in some bytes, to be taken one after another."""

    def __init__(self, data, order, wanted):
        self.data, self.order, self.wanted = data, order, wanted

    def left(self):
        """Return how many bytes are left."""
        return len(self.data)

    def next(self):
        """Return (type, data) of the next element."""
        kind, size = struct.unpack_from(self.order + "II", self.data)
        start, end = 8, 8 + size
        if kind >> 16:  # a small one: type and size are in 4 bytes, and 4 bytes for the data follow
            kind, size, start, end = kind & 0xffff, kind >> 16, 4, 8
        elif kind != COMPRESSED:
            end += -size % 8
        data = self.data[start:start + size]
        if len(data) < size or start + size > end:
            raise _Damaged("an element of {} bytes is cut off".format(size))
        self.data = self.data[end:]
        return kind, data

    def numbers(self):
        """Return the next element, a list of numbers."""
        kind, data = self.next()
        if kind not in NUMBER_TYPES:
            raise _Damaged("an element of type {} where numbers are expected".format(kind))
        return np.frombuffer(data, self.order + NUMBER_TYPES[kind]).tolist()

    def counts(self, least):
        """Return the next element, a list of at least so many whole numbers from 0 on."""
        found = self.numbers()
        if len(found) < least or not all(isinstance(number, int) and number >= 0 for number in found):
            raise _Damaged("{} where sizes are expected".format(found[:4]))
        return found

    def text(self):
        """Return the next element, a str."""
        kind, data = self.next()
        if kind not in ENCODINGS:
            raise _Damaged("an element of type {} where text is expected".format(kind))
        byte_order = {"<": "-le", ">": "-be"}[self.order] if ENCODINGS[kind] in ("utf-16", "utf-32") else ""
        return bytes(data).decode(ENCODINGS[kind] + byte_order)

    def value(self, depth):
        """Return the next element, an array in another one."""
        kind, data = self.next()
        if kind != MATRIX or depth > MOST_DEPTH:
            raise _Damaged("an element of type {} at depth {}".format(kind, depth))
        return _array(_Elements(data, self.order, self.wanted), depth)[1]


def _array(elements, depth=0):
    """Return (name, value) of the array that consists of these elements."""
    if not elements.left():  # MATLAB's []
        return "", []
    kind, count, name = elements.counts(1)[0] & 0xff, math.prod(elements.counts(2)), elements.text()
    if kind == CHAR:
        return name, elements.text()
    if kind in NUMBERS:
        return name, elements.numbers()
    if kind not in (CELL, STRUCT):
        raise _Damaged("an array of class {}, which is not known here".format(kind))
    if kind == STRUCT:
        width, names = elements.counts(1)[0], elements.text()
        fields = [names[start:start + width].split("\0")[0] for start in range(0, len(names), max(width, 1))]
    if 8 * count > elements.left():
        raise _Damaged("{} elements in {} bytes".format(count, elements.left()))
    if kind == CELL:
        return name, [elements.value(depth + 1) for _ in range(count)]
    rows = [[elements.value(depth + 1) if field in elements.wanted else elements.next() for field in fields]
            for _ in range(count)]
    return name, [{field: value for field, value in zip(fields, row) if field in elements.wanted} for row in rows]
