"""Read training pictures: PIL each time against the cache; 500 x 375 JPEGs drawn here, one process."""
import os
import tempfile

import numpy as np
from PIL import Image

from common import main, parser

import textbook
from engine.device import resolve_device
from dataset import ImageSet, TrainLoader, open_pictures, resized_size
from metric.batchsampler import NPairs

COUNT, BATCH = 512, 64
FOLDER = os.path.join(tempfile.gettempdir(), "rkd-benchmark-loader")


def draw():
    """Smooth coloured noise: JPEGs of 60 kB, as CUB-200's are."""
    os.makedirs(FOLDER, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = os.path.join(FOLDER, "{:04d}.jpg".format(number))
        if not os.path.exists(path):
            coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
            coarse = coarse.resize((500, 375), Image.BICUBIC)
            fine = rng.normal(0, 8, (375, 500, 3))
            Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    return [(os.path.join(FOLDER, name), index // 8) for index, name in enumerate(sorted(
        name for name in os.listdir(FOLDER) if name.endswith(".jpg")))]


def read_all(batches):
    for images, labels in batches:
        pass


def ours(samples, cache):
    resolve_device("cpu")
    images = ImageSet(samples, {str(label): label for label in range(COUNT // 8)})
    pictures = open_pictures([path for path, _ in samples], resized_size(224), cache, FOLDER)
    loader = TrainLoader(images, NPairs(images, BATCH, 4, COUNT // BATCH, seed=0), 224, pictures=pictures)
    return lambda: read_all(loader.epoch(1))


def cases(samples):
    rng = np.random.default_rng(0)
    order = rng.permutation(COUNT).reshape(-1, BATCH).tolist()
    return {"500 x 375 JPEG -> 224 crop, batches of 64": {
        "textbook": {"work": lambda: read_all(textbook.loader(samples, order, workers=0)), "count": COUNT},
        "ours, --cache off": {"prepare": lambda: (ours(samples, "off"),), "work": lambda run: run(), "count": COUNT},
        "ours": {"prepare": lambda: (ours(samples, FOLDER),), "work": lambda run: run(), "count": COUNT},
    }, "making the cache, all cores": {
        "ours": {"prepare": lambda: (), "work": lambda: make_cache(samples), "count": COUNT},
    }}


def make_cache(samples):
    with tempfile.TemporaryDirectory() as folder:
        open_pictures([path for path, _ in samples], resized_size(224), folder)


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    arguments.threads = arguments.threads or 1
    main(arguments, cases(draw()), "pictures")
