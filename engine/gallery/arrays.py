"""NumPy's arrays in files: written block by block, read slice by slice, so that they may be larger than the memory."""
import collections
import zipfile

import numpy as np

Array = collections.namedtuple("Array", "type shape blocks")
Array.__doc__ = """An array to be written: its NumPy type, its shape, and what yields its rows, block by block."""


def write_array(file, array):
    """Write what ``np.save`` would."""
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(np.dtype(array.type)),
                                                "fortran_order": False, "shape": array.shape})
    for block in array.blocks:
        file.write(block.tobytes())


def member_of(archive, path, name):
    """Return the ``Stored`` of an array in an archive that is not packed."""
    member = archive.getinfo(name + ".npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its {} are packed".format(name))
    with open(path, "rb") as file:  # the name and what follows it stand before the content, as long as these two say
        file.seek(member.header_offset + 26)
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    return Stored(path, member.header_offset + 30 + lengths, member.file_size)


class Stored:
    """An array in a file, in NumPy's format, ``size`` bytes from ``offset`` on; slices of it are read, [()] is all."""

    def __init__(self, path, offset, size):
        with open(path, "rb") as file:
            file.seek(offset)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("an array of another format")
            self.shape, is_fortran, self.type = np.lib.format.read_array_header_1_0(file)
            self.path, self.start = path, file.tell()
        if is_fortran or self.type.hasobject:
            raise ValueError("an array of another kind")
        self.row = int(np.prod(self.shape[1:], dtype=np.int64))
        if self.start - offset + self.row * int(np.prod(self.shape[:1])) * self.type.itemsize != size:
            raise ValueError("it is not whole")

    def __getitem__(self, rows):
        if rows == ():
            return self._read(0, 1).reshape(())
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop - start).reshape((-1,) + self.shape[1:])

    def _read(self, first, count):
        with open(self.path, "rb") as file:
            file.seek(self.start + first * self.row * self.type.itemsize)
            return np.fromfile(file, self.type, count * self.row)
