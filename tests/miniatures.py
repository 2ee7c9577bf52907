"""The field's data sets as their archives lay them out, with a few small pictures and numbers lowered to these."""
import numpy as np
from PIL import Image

from dataset import Cars196Metric, InShopMetric, StanfordOnlineProductsMetric
from matfiles import write_matfile

CARS = ["AM General Hummer SUV 2000", "smart fortwo", "Citro\u00ebn C3", "Audi A5", "BMW M3", "Fiat 500"]


def draw(path, kind, number, shade=0):
    """Write a small noisy picture in the colour of class ``kind``; ``shade`` mixes the colours of classes up."""
    rng = np.random.default_rng([kind, number])
    colour = np.random.default_rng(kind).integers(60, 196, size=3) + rng.integers(-shade, shade + 1, size=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + rng.integers(-60, 60, size=(36, 40, 3))).clip(0, 255).astype(np.uint8)).save(str(path))


def make_cars(root, monkeypatch, compressed=True):
    """Write the archive's layout of six models with 3 and 4 pictures in turn into ``root``."""
    kinds = [4, 0, 5, 2, 1, 3] * 3 + [1, 3, 5]
    monkeypatch.setattr(Cars196Metric, "CLASSES", 6)
    monkeypatch.setattr(Cars196Metric, "PICTURES", {True: 10, False: 11})
    rows = []
    for number, kind in enumerate(kinds, 1):
        name = "car_ims/{:06d}.jpg".format(number)
        draw(root / name, kind, number)
        rows.append({"relative_im_path": name, "bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 30, "bbox_y2": 40,
                     "class": kind + 1, "test": number % 2})
    write_matfile(root / "cars_annos.mat", {"annotations": rows, "class_names": CARS}, compressed)
    return kinds


def make_torchvisions_cars(root, monkeypatch, compressed=True):
    """The same pictures in torchvision's layout; each of its halves has all classes."""
    kinds = make_cars(root / "aside", monkeypatch)
    rows = {"train": [], "test": []}
    for number, kind in enumerate(kinds):
        half = "train" if number < 12 else "test"
        name = "{:05d}.jpg".format(len(rows[half]) + 1)
        (root / ("cars_" + half)).mkdir(exist_ok=True)
        (root / "aside" / "car_ims" / "{:06d}.jpg".format(number + 1)).rename(root / ("cars_" + half) / name)
        rows[half].append({"bbox_x1": 1, "class": kind + 1, "fname": name})
    (root / "devkit").mkdir()
    write_matfile(root / "devkit" / "cars_train_annos.mat", {"annotations": rows["train"]}, compressed)
    write_matfile(root / "cars_test_annos_withlabels.mat", {"annotations": rows["test"]}, compressed)
    write_matfile(root / "devkit" / "cars_meta.mat", {"class_names": CARS}, compressed)
    return kinds


def make_products(root, monkeypatch):
    """Write Stanford Online Products into ``root``: 3 products of 2 pictures train, 4 others of 3 test."""
    monkeypatch.setattr(StanfordOnlineProductsMetric, "CLASSES", {True: 3, False: 4})
    monkeypatch.setattr(StanfordOnlineProductsMetric, "PICTURES", {True: 6, False: 12})
    number = 0
    for name, products, count in (("Ebay_train.txt", (1, 2, 3), 2), ("Ebay_test.txt", (4, 5, 6, 7), 3)):
        lines = ["image_id class_id super_class_id path"]
        for product in products:
            group = ("bicycle", "chair")[product % 2]
            for view in range(count):
                number += 1
                path = "{}_final/{}_{}.JPG".format(group, 110000 + product, view)
                draw(root / path, product, view)
                lines.append("{} {} {} {}".format(number, product, 1 + product % 2, path))
        (root / name).write_text("\n".join(lines) + "\n")


def lower_clothes(set_attribute=setattr):
    """Lower the numbers of In-shop Clothes Retrieval to those of ``make_clothes``."""
    set_attribute(InShopMetric, "CLASSES", {"train": 4, "query": 3, "gallery": 3})
    set_attribute(InShopMetric, "PICTURES", {"train": 16, "query": 6, "gallery": 9})


def make_clothes(root, monkeypatch, lists="Eval", images="img"):
    """Write In-shop Clothes Retrieval into ``root``: 4 items of 4 pictures train; of 3 others 2 pictures are queries, 3
    the gallery; in their ids both take turns."""
    lower_clothes(monkeypatch.setattr)
    rows = []
    for item in (7, 6, 5, 4, 3, 2, 1):
        parts = ["train"] * 4 if item % 2 else ["query"] * 2 + ["gallery"] * 3
        for view, part in enumerate(parts, 1):
            below = "WOMEN/Dresses/id_{:08d}/{:02d}_1_front.jpg".format(item, view)
            draw(root / images / below, item, view, shade=60)  # so that recalls are neither 0 nor 1
            rows.append("{:<70}{:<20}{}".format("img/" + below, "id_{:08d}".format(item), part))
    path = root / lists / "list_eval_partition.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\nimage_name item_id evaluation_status\n{}\n".format(len(rows), "\n".join(rows)))
    return path
