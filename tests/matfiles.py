"""Write MATLAB files of level 5 for tests: text, whole numbers, lists (cells) and lists of dicts (struct arrays)."""
import struct
import zlib


def element(order, kind, data):
    return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)


def small(order, kind, data):
    """An element of at most 4 bytes of data, which has a form of its own."""
    return struct.pack(order + "I", len(data) << 16 | kind) + data + bytes(-len(data) % 4)


def matrix(order, value, name=b""):
    """An array: a str, an int, a list of dicts with the same fields, or a list of any of these."""
    struct_array = isinstance(value, list) and value and isinstance(value[0], dict)
    kind = 4 if isinstance(value, str) else 6 if isinstance(value, int) else 2 if struct_array else 1
    columns = 1 if isinstance(value, int) else len(value)
    content = element(order, 6, struct.pack(order + "II", kind, 0))
    content += element(order, 5, struct.pack(order + "ii", 1, columns))
    content += small(order, 1, name) if 1 <= len(name) <= 4 else element(order, 1, name)
    if kind == 4:
        content += element(order, 4, value.encode("utf-16-le" if order == "<" else "utf-16-be"))
    elif kind == 6:
        content += small(order, 2, bytes([value]))  # as MATLAB does: a small double is stored in one byte
    elif kind == 2:
        content += small(order, 5, struct.pack(order + "i", 32))
        content += element(order, 1, b"".join(field.encode().ljust(32, b"\0") for field in value[0]))
        content += b"".join(matrix(order, row[field]) for row in value for field in row)
    else:
        content += b"".join(matrix(order, entry) for entry in value)
    return element(order, 14, content)


def write_matfile(path, variables, compressed=True, order="<"):
    content = b"MATLAB 5.0 MAT-file, for tests".ljust(124) + struct.pack(order + "HH", 0x0100, 0x4d49)
    for name, value in variables.items():
        variable = matrix(order, value, name.encode())
        if compressed:
            variable = zlib.compress(variable)
            variable = struct.pack(order + "II", 15, len(variable)) + variable
        content += variable
    with open(str(path), "wb") as file:
        file.write(content)
