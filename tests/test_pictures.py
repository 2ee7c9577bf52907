"""One picture, opened as a person sees it: turned, grey of any depth, truncated, of any format."""
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset import DatasetError, load_resized
from dataset.pictures import IMAGE_EXTENSIONS, UnreadablePicture, open_image
from test_damaged_pictures import (PIXELS, SIDE, cmyk, held_upright, no_picture, odd_name, one_pixel, palette,
                                   sixteen_bits, transparent, zero_bytes)

GREY = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 40 // 256)[..., None].repeat(3, 2)
WHITE_TOP = np.where((np.arange(SIDE) < SIDE // 2)[:, None, None], 255, PIXELS)


def opened(path, *options):
    return np.asarray(open_image(str(path), *options)).astype(int)


@pytest.mark.parametrize("make, expected, tolerance", [
    (cmyk, PIXELS, 40), (palette, PIXELS, 0), (sixteen_bits, GREY, 0), (transparent, WHITE_TOP, 0),
    (held_upright, PIXELS, 0), (one_pixel, np.full((1, 1, 3), (10, 20, 30)), 0), (odd_name, PIXELS, 0),
])
def test_readable_pictures_are_what_a_person_sees(tmp_path, make, expected, tolerance):
    path = str(tmp_path / "one.png")
    make(path)
    found = opened(path)
    assert found.shape == expected.shape
    assert np.mean(np.abs(found - expected) > tolerance) <= (0.05 if tolerance else 0)  # JPEG blurs edges
    assert load_resized(path, 7).shape == (7, 7, 3)


# Turned

UNDONE = {1: None, 2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
          6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}


@pytest.mark.parametrize("kind, mode, options", [
    ("PNG", "RGB", {}), ("JPEG", "RGB", {"quality": 95}), ("WEBP", "RGB", {"quality": 95}),
    ("TIFF", "RGB", {}), ("TIFF", "L", {}), ("TIFF", "CMYK", {}), ("TIFF", "1", {}), ("TIFF", "I;16", {}),
    ("TIFF", "P", {"compression": "packbits"}), ("TIFF", "I", {"compression": "tiff_lzw"}),
    ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}), ("TIFF", "RGB", {"compression": "jpeg"})])
def test_every_orientation(tmp_path, kind, mode, options):
    upright = np.full((24, 40), 40, np.uint8)  # wider than high, and one bright corner: each turn or flip shows
    upright[:8, :16] = 240
    for orientation, method in UNDONE.items():
        image = Image.fromarray(upright)
        image = image if method is None else image.transpose(method)
        if mode.startswith("I"):
            image = Image.fromarray(np.asarray(image).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
        elif mode == "1":
            image = image.point(lambda value: 255 * (value > 128)).convert("1")
        else:
            image = image.convert("RGB").convert(mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        note = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
        image.save(str(tmp_path / "one"), kind, **note, **options)
        found = opened(tmp_path / "one")
        assert found.shape == upright.shape + (3,), orientation
        assert np.mean((found > 128) != (upright > 128)[..., None]) < 0.02, orientation  # JPEG and WebP blur edges


def test_a_broken_camera_note_is_no_reason_to_refuse(tmp_path):
    path = str(tmp_path / "one.jpg")
    Image.fromarray(PIXELS).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    assert open_image(path).size == (SIDE, SIDE)


def test_no_memory_for_a_camera_note_is_no_reason_to_leave_a_picture_lying(tmp_path, monkeypatch):
    def getexif(image):
        raise MemoryError

    held_upright(str(tmp_path / "one.png"))
    monkeypatch.setattr(Image.Image, "getexif", getexif)
    with pytest.raises(MemoryError):
        open_image(str(tmp_path / "one.png"))


# More than 8 bits

def png(path, values):
    """Write ``values``, height x width or height x width x 2, 3 or 4, as a PNG of 16 bits."""
    height, width = values.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    with open(str(path), "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
                              (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))


def tiff(path, values, bits=16, order="<", **tags):
    """Write ``values``, height x width or height x width x 3, as a raw TIFF; ``tags`` are t<number>=value."""
    height, width = values.shape[:2]
    channels = values[0, 0].size
    if bits == 12:
        pairs = np.unpackbits(values.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[:, :, 4:]
        content = np.packbits(pairs.reshape(height, -1), axis=1).tobytes()
    else:
        content = values.astype("{}u{}".format(order, bits // 8)).tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1 if channels == 1 else 2, 273: 0, 277: channels,
               278: height, 279: len(content)}
    entries.update((int(name[1:]), value) for name, value in tags.items())
    after = 8 + 2 + 12 * len(entries) + 4
    entries[273] = after + 6
    file = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    for tag, value in sorted(entries.items()):
        if tag == 258 and channels == 3:
            file += struct.pack(order + "HHII", tag, 3, 3, after)
        else:
            file += struct.pack(order + "HHII", tag, 4, 1, value)
    with open(str(path), "wb") as opened_file:
        opened_file.write(file + bytes(4) + struct.pack(order + "3H", bits, bits, bits) + content)


def pgm(path, values, largest):
    with open(str(path), "wb") as file:
        file.write(b"P5\n# a note\n%d %d %d\n" % (values.shape[1], values.shape[0], largest))
        file.write(values.astype(">u2" if largest > 255 else "u1").tobytes())


def pillow(path, values, dtype):
    Image.fromarray(values.astype(dtype)).save(str(path), "TIFF")


def ramp(largest):
    return np.linspace(0, largest, 60).astype(int).reshape(6, 10)


@pytest.mark.parametrize("make, values, options, expected", [
    # The file does not say: the smallest depth of 8, 10, 12, 14 and 16 that holds the largest value.
    (pillow, ramp(0), {"dtype": "u2"}, ramp(0)), (pillow, ramp(255), {"dtype": "i4"}, ramp(255)),
    (pillow, ramp(256), {"dtype": "i4"}, ramp(256) >> 2), (pillow, ramp(1023), {"dtype": "u2"}, ramp(1023) >> 2),
    (pillow, ramp(1024), {"dtype": "u2"}, ramp(1024) >> 4), (pillow, ramp(4095), {"dtype": ">u2"}, ramp(4095) >> 4),
    (pillow, ramp(16383), {"dtype": "i4"}, ramp(16383) >> 6), (pillow, ramp(16384), {"dtype": "u2"}, ramp(16384) >> 8),
    (pillow, ramp(65535), {"dtype": "u2"}, ramp(65535) >> 8), (tiff, ramp(4095), {"bits": 32}, ramp(4095) >> 4),
    (png, ramp(4095), {}, ramp(4095) >> 4), (pgm, ramp(4095), {"largest": 65535}, ramp(4095) >> 4),
    # The file says it.
    (tiff, ramp(255), {"bits": 12}, ramp(255) >> 4), (tiff, ramp(4095), {"bits": 12}, ramp(4095) >> 4),
    (tiff, ramp(200), {"t281": 1023}, ramp(200) >> 2), (pgm, ramp(255), {"largest": 4095}, ramp(255) >> 4),
    (pgm, ramp(1000), {"largest": 1000}, (ramp(1000) * 65535 + 500) // 1000 >> 8),
    (pgm, ramp(15), {"largest": 15}, ramp(15) * 17),
    # What it says can't be, or is no more than its 16 bits.
    (tiff, ramp(4095), {"t281": 100}, ramp(4095) >> 4), (tiff, ramp(4095), {"t281": 2 ** 32 - 1}, ramp(4095) >> 4),
    (tiff, ramp(4095), {"t281": 65535, "order": ">"}, ramp(4095) >> 4),
])
def test_grey_of_any_depth(tmp_path, make, values, options, expected):
    make(tmp_path / "one", values, **options)
    assert np.array_equal(opened(tmp_path / "one"), expected[..., None].repeat(3, 2))


@pytest.mark.parametrize("make", [png, tiff])
def test_colours_of_16_bits_are_taken_if_they_use_them(tmp_path, make):
    colours = np.stack([ramp(65535), ramp(4095), ramp(0)], 2)
    make(tmp_path / "one", colours)
    assert np.array_equal(opened(tmp_path / "one"), colours >> 8)
    colours = np.stack([ramp(4095), ramp(4095)[::-1], ramp(4095)], 2)
    make(tmp_path / "one", colours)
    with pytest.raises(UnreadablePicture, match="16 bits per channel.*nearly black; convert it to 8"):
        open_image(str(tmp_path / "one"))


def test_that_a_picture_is_not_transparent_does_not_make_it_bright(tmp_path):
    png(tmp_path / "one", np.stack([ramp(4095), np.full((6, 10), 65535)], 2))
    with pytest.raises(UnreadablePicture, match="nearly black"):
        open_image(str(tmp_path / "one"))


@pytest.mark.parametrize("make, values, options", [
    (pillow, np.full((4, 4), 0.5), {"dtype": "f4"}), (pillow, np.full((4, 4), 1e6), {"dtype": "f4"}),
    (pillow, np.full((4, 4), 65536), {"dtype": "i4"}), (pillow, np.full((4, 4), -1), {"dtype": "i4"}),
    (tiff, np.stack([ramp(65535)] * 3, 2), {"t284": 2}), (tiff, ramp(65535), {"t262": 0})])
def test_pictures_of_unclear_range_are_named(tmp_path, make, values, options):
    make(tmp_path / "one", values, **options)
    with pytest.raises(DatasetError) as caught:
        open_image(str(tmp_path / "one"))
    assert "one: a picture that can't be read" in str(caught.value) and len(str(caught.value).splitlines()) == 1


# Truncated

def save_noise(path, kind, **options):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).resize((320, 240), Image.BILINEAR)
    image.save(str(path), kind, **options)
    return os.path.getsize(str(path))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_without_its_last_two_bytes_is_taken_if_asked(tmp_path, options):
    size = save_noise(tmp_path / "one.jpg", "JPEG", **options)
    whole = opened(tmp_path / "one.jpg")
    os.truncate(str(tmp_path / "one.jpg"), size - 2)
    with pytest.raises(UnreadablePicture, match="a truncated picture .*--truncated ok .*--skip_broken") as caught:
        open_image(str(tmp_path / "one.jpg"))
    assert str(tmp_path / "one.jpg") in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert np.array_equal(opened(tmp_path / "one.jpg", "ok"), whole)


def test_what_a_truncated_jpeg_lacks_is_grey(tmp_path):
    size = save_noise(tmp_path / "one.jpg", "JPEG", quality=95)
    whole = opened(tmp_path / "one.jpg")
    os.truncate(str(tmp_path / "one.jpg"), size // 2)
    found = opened(tmp_path / "one.jpg", "ok")
    assert np.array_equal(found[:80], whole[:80]) and np.all(found[-40:] == 128)


def test_a_truncated_progressive_jpeg_is_not_black(tmp_path):
    size = save_noise(tmp_path / "one.jpg", "JPEG", progressive=True)
    whole = opened(tmp_path / "one.jpg")
    os.truncate(str(tmp_path / "one.jpg"), size * 3 // 4)
    assert np.abs(opened(tmp_path / "one.jpg", "ok") - whole).mean() < 20


def cut_in_half(kind):
    def make(path):
        os.truncate(path, save_noise(path, kind) // 2)

    make.__name__ = kind
    return make


def cut_in_its_header(path):
    save_noise(path, "JPEG")
    os.truncate(path, 100)


@pytest.mark.parametrize("make", [zero_bytes, no_picture, cut_in_its_header] + [
    cut_in_half(kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000")], ids=lambda make: make.__name__)
@pytest.mark.parametrize("truncated", ["refuse", "ok"])
def test_what_can_not_be_completed_stays_refused(tmp_path, make, truncated):
    make(str(tmp_path / "one"))
    with pytest.raises(UnreadablePicture, match="one: a picture that can't be read") as caught:
        open_image(str(tmp_path / "one"), truncated)
    assert "--truncated" not in str(caught.value)


# Formats

def test_a_name_does_not_start_another_program(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"  # in place of Ghostscript
    program.write_text("#!/bin/sh\ntouch {}\n".format(tmp_path / "started"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    (tmp_path / "one.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadablePicture, match="no picture of a known format"):
        open_image(str(tmp_path / "one.jpg"))
    assert not (tmp_path / "started").exists()


def test_extensions_are_those_that_pillow_can_open():
    found = set(IMAGE_EXTENSIONS)
    assert found > set(".jpg .jpeg .png .bmp .webp .tif .tiff .gif .ppm .pgm .jfif .jpe .tga .mpo".split())
    assert not found & set(".eps .ps .pdf .h5 .hdf .grib .bufr .wmf .mpg .pcd .fits .pfm .psd .ico".split())
    assert (".avif" in IMAGE_EXTENSIONS) == (".avif" in Image.registered_extensions())
    assert list(IMAGE_EXTENSIONS) == sorted(extension.lower() for extension in found)


@pytest.mark.parametrize("kind", ["TGA", "PCX", "JPEG2000", "SGI", "MPO"])
def test_rarer_formats_are_read(tmp_path, kind):
    image = Image.fromarray(PIXELS).resize((32, 32), Image.NEAREST)
    image.save(str(tmp_path / "one"), kind)
    assert np.mean(np.abs(opened(tmp_path / "one") - np.asarray(image)) > 40) < 0.15
