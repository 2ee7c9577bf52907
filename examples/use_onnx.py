"""How far some pictures are from the first one, nearest first, by an exported network: numpy, pillow and onnxruntime.

    python3 use_onnx.py student.onnx query.jpg picture.jpg picture.jpg ...
"""
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 4:
    sys.exit(__doc__)
network, (query, *others) = onnxruntime.InferenceSession(sys.argv[1]), sys.argv[2:]
notes = network.get_modelmeta().custom_metadata_map
size = int(notes["image_size"])  # what the network sees: the middle of a picture that is resized to ``side``
side = round(size * 8 / 7)


def kept(length, short):
    """Of a side, what remains when the short side becomes ``side`` and the middle square is cut out: (from, to)."""
    resized = int(side * length / short)
    start = round((resized - side) / 2)
    return start * length / resized, (start + side) * length / resized


def cropped(path):
    """As the project crops it, bit for bit, but for pictures that are transparent or have more than 8 bits."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (left, right), (top, bottom) = (kept(length, min(image.size)) for length in image.size)
    box = (left, top, right, bottom) if notes["resize"] == "short" else None  # None: all of it, squeezed into a square
    start = round((side - size) / 2)
    return np.asarray(image.resize((side, side), Image.BILINEAR, box))[start:start + size, start:start + size]


pictures = np.stack([cropped(path) for path in [query] + others]).transpose(0, 3, 1, 2)  # N x 3 x size x size, uint8
embeddings = network.run(["embeddings"], {"pictures": pictures})[0]
distances = np.linalg.norm(embeddings[1:] - embeddings[0], axis=1)
for index in distances.argsort():
    print("{:.4f}  {}".format(distances[index], others[index]))
