"""A picture file, opened as a person sees it: which files are pictures, decoding, and what to say of a broken one."""
import contextlib
import errno
import io
import os
import re
import stat
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.files import chunks_of

__all__ = ["IMAGE_EXTENSIONS", "TRUNCATED", "DatasetError", "UnreadablePicture", "checksum_of", "open_image", "shown"]

TRUNCATED = ("refuse", "ok")  # what may be done with a JPEG whose end is missing
# Of the formats that Pillow knows, those that are not taken for pictures, and one extension.
_LEFT_OUT = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF",  # Pillow reads their headers only
             "EPS",  # Pillow starts another program for it, Ghostscript
             "FPX", "MIC",  # Pillow needs another package for them
             "IM",  # newer Pillow warns that it will be gone
             "BLP", "DDS", "FTEX",  # game textures: Pillow takes truncated ones, and can need minutes for a damaged one
             "CUR", "GBR", "ICNS", "ICO", "PSD",  # icons, brushes, an editor's own files: often beside the pictures
             "FITS", "IPTC", "PCD", ".pfm"}  # mostly a user's data: measurements, notes, clouds of points, depths
Image.preinit()  # the usual formats first: Pillow tries them in this order
Image.init()
_FORMAT_OF = {extension: name for extension, name in Image.registered_extensions().items()
              if (name in Image.OPEN or name == "MPO")  # an MPO is opened as a JPEG
              and not {name, extension} & _LEFT_OUT}
# Extensions of pictures, in lower case: all that this Pillow opens by itself, and these ten in any case.
IMAGE_EXTENSIONS = tuple(sorted({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
                                | set(_FORMAT_OF)))
# Pillow goes by the content, not by the name. With its usual list, an EPS that is called a.jpg starts Ghostscript.
_FORMATS = tuple(name for name in Image.ID if name in _FORMAT_OF.values())
# Errno values that are the machine's fault, not the picture's: what it is short of.
SHORTAGES = {errno.EMFILE: "file descriptors; see ulimit -n", errno.ENFILE: "file descriptors",
             errno.ENOMEM: "memory"}
# Pillow warns of pictures of more than 89 megapixels and refuses those of more than 179. The filter is set once:
# warnings.catch_warnings around each picture is not safe with threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _PLANAR = 258, 262, 281, 284
_JPEG_END = b"\xff\xd9"
_ORIENTATION_TAG = 0x0112
# How to turn a picture upright, by its EXIF orientation.
_ORIENTATIONS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
                 6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}


class DatasetError(Exception):
    """Pictures that are missing, unreadable or don't fit the job; the message is one line for the user."""


class UnreadablePicture(DatasetError):
    """A picture that is missing, broken, or no picture; the others can be used without it."""


def shown(path):
    """Return ``path`` for a message: on one line, with unprintable characters escaped as in Python (``\\n``)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in path)


def open_image(path, truncated="refuse"):
    """Return the picture at ``path``, decoded, as an upright RGB PIL image of 8 bits.

    Transparent pictures are laid on white; of several frames the first is taken; the EXIF orientation is applied.

    Grey of more than 8 bits: if the file says that a sample has another number of bits than 8, 16 or 32 (a TIFF), or a
    largest value of its own (a TIFF, a PGM), this range becomes 0..255. Else the range has the smallest depth of 8, 10,
    12, 14 and 16 bits that holds the largest value of the picture, and the upper 8 of these bits are taken. Colours of
    16 bits: the upper 8 are taken.

    Args:
        truncated: "ok" takes a JPEG whose end is missing, with grey for what is missing; "refuse" does not.

    Raises:
        UnreadablePicture: no such file, no regular file, no picture that Pillow can decode, a truncated one, or one
            whose values have no clear range: floating point, below 0, above 65535, or colours of 16 bits of which only
            the lower 12 are used.
        DatasetError: the machine is short of file descriptors or of memory.
        MemoryError: it is short of memory.
    """
    # Not Image.open(path): with that, Pillow 11 and newer map raw TIFFs into memory, and garble those to be turned.
    with _reading(path), open(path, "rb") as file:
        try:
            return _decoded(file)
        except OSError as error:
            if not _is_truncated_jpeg(file, error):
                raise
            file.seek(0)
            completed = _decoded(io.BytesIO(file.read() + _JPEG_END))
            if truncated != "ok":
                raise UnreadablePicture(
                    "{}: a truncated picture ({}); --truncated ok takes it, with grey for what is "
                    "missing; of a data set --skip_broken leaves it out".format(shown(path), error)) from None
            return completed


def checksum_of(path):
    """Return the CRC-32 of the file of a picture. Raises as ``open_image``."""
    checksum = 0
    with _reading(path), open(path, "rb") as file:
        for chunk in chunks_of(file):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


@contextlib.contextmanager
def _reading(path):
    """Within the block, which reads the picture at ``path``, an error becomes one that ``open_image`` names."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe could wait for ever
            raise OSError("no regular file")
        yield
    except (MemoryError, UnreadablePicture):
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for a broken picture
        missing = _shortage(error)
        if missing:
            raise DatasetError("{}: this picture can't be read now, because the machine is short of {}".format(
                shown(path), missing)) from None
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):  # Pillow's own words name an object of Python
            reason = "no picture of a known format"
        raise UnreadablePicture("{}: a picture that can't be read ({}); mend or remove it".format(
            shown(path), reason)) from None


def _is_truncated_jpeg(file, error):
    """Whether ``error`` is about a JPEG that is whole up to some point behind its header.

    Only a JPEG is completed. Pillow's own LOAD_TRUNCATED_IMAGES gives black for what other formats lack, nothing but
    black for many a progressive JPEG and JPEG 2000, and holds for all threads.
    """
    file.seek(0)
    return "file is truncated" in str(error) and file.read(2) == b"\xff\xd8"


def _shortage(error):
    """Return what the machine is short of if that caused an error of ``open_image``, else None."""
    if not isinstance(error, OSError):
        return None
    # Pillow's decoders report a lack of memory without an errno.
    return SHORTAGES.get(errno.ENOMEM if str(error).startswith("out of memory") else error.errno)


def _orientation(image):
    """Return the EXIF orientation, or None; damaged EXIF data is no reason to refuse the picture."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except MemoryError:
        raise
    except Exception:  # struct.error, SyntaxError, ValueError ... by version and damage
        return None


def _decoded(file):
    with Image.open(file, formats=_FORMATS) as image:
        upright = _as_rgb(image)
        # Pillow turns a TIFF when it loads it. ImageOps.exif_transpose would turn it again (Pillow 8.4 to 10.0), and
        # fails with damaged EXIF data.
        turned = None if image.format == "TIFF" else _ORIENTATIONS.get(_orientation(image))
        return upright if turned is None else upright.transpose(turned)


def _as_rgb(image):
    largest = _stated_largest(image)
    _refuse_unclear(image)
    image.load()  # before it is an array: up to Pillow 9.0 that has the size from before a TIFF is turned
    if image.mode.startswith("I") or largest:
        image = Image.fromarray(_eight_bits(np.asarray(image), largest))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _refuse_unclear(image):
    """Raise ValueError if Pillow would give wrong pixels without a word; to be called before the picture is loaded."""
    if image.mode == "F":
        raise ValueError("floating-point values; convert it to 8 bits per channel")
    grey = image.mode.startswith("I")
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if 16 in tags.get(_BITS_PER_SAMPLE, ()) and (tags.get(_PHOTOMETRIC) == 0 if grey else tags.get(_PLANAR) == 2):
        raise ValueError("16 bits stored {}, which Pillow misreads; convert it to 8 bits per channel".format(
            "with 0 for white" if grey else "channel by channel"))
    # Decoder and its arguments: of "RGB;16B" (PNG, TIFF), SGI16 and a PPM up to 65535 Pillow keeps the upper bytes.
    stored = str([tile[::3] for tile in (image.tile or [])[:1]])
    if not grey and re.search(r";16|SGI16|\b65535\b", stored):
        values = np.asarray(image)
        if image.getbands()[-1] == "A":
            values = values[..., :-1][values[..., -1] > 0]  # what is transparent is not seen
        if 0 < values.max(initial=0) <= 16:
            raise ValueError("16 bits per channel, of which hardly more than the lower 12 are used: it would be nearly "
                             "black; convert it to 8 bits per channel")


def _stated_largest(image):
    """Return the largest value that a sample of ``image`` can have by what its file says; None if it doesn't say. The
    picture is not loaded yet."""
    if image.format == "PPM" and image.mode in ("L", "I", "RGB"):
        image.fp.seek(0)
        header = re.sub(b"#.*", b"", image.fp.read(4096)).split()[:4]
        if not header[-1].isdigit() or len(header) < 4:
            raise ValueError("its header can't be read")
        largest = int(header[3])
        if largest in (255, 65535):
            return None
        if image.tile[0][0] == "raw":
            return largest
        return 65535 if image.mode == "I" else None  # Pillow 9.2 and newer scale it to 16 or 8 bits
    if image.format == "TIFF" and image.mode.startswith("I"):
        bits = image.tag_v2[_BITS_PER_SAMPLE][0]
        largest = np.max(image.tag_v2.get(_MAX_SAMPLE_VALUE, 0)) if bits in (8, 16, 32) else 2 ** bits - 1
        return int(largest) if largest < 65535 else None
    return None


def _eight_bits(values, largest):
    """Return the integer array ``values`` as uint8; ``largest`` becomes 255, or see ``open_image`` if it is None."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError("values from {} to {}; convert it to 8 or 16 bits per channel".format(low, high))
    if not largest or largest < high:
        largest = next(2 ** bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2 ** bits)
    # To 16 bits, rounded as Pillow does it for a PGM, then the upper 8 of them. uint32 is just large enough.
    return ((values.astype(np.uint32) * 65535 + largest // 2) // largest >> 8).astype(np.uint8)
