"""Pictures as small squares."""
import functools

from PIL import Image, ImageDraw

from dataset import DatasetError, load_resized
from report.text import data_uri

SIDE = 240  # pixels: 80 units of a canvas at 300 dpi
SIDE_IN_PAGE = 128
GREY = (150, 150, 150)


class Tiles:
    """The tile of each picture that is asked for: opened once.

    Attributes:
        missing: how many pictures could not be opened; their tile is grey with a cross.
    """

    def __init__(self):
        self.missing = 0
        self._tiles, self._addresses = {}, {}

    def tile(self, path):
        """Return the middle square of the picture at ``path``, SIDE x SIDE, as a PIL image."""
        if path not in self._tiles:
            try:
                self._tiles[path] = Image.fromarray(load_resized(path, SIDE, "ok", "short"))
            except DatasetError:  # broken or moved since its embedding was made
                self._tiles[path] = _nothing()
                self.missing += 1
        return self._tiles[path]

    def address(self, path):
        """Return a smaller tile as a data: URI, for a page."""
        if path not in self._addresses:
            self._addresses[path] = data_uri(self.tile(path).resize((SIDE_IN_PAGE, SIDE_IN_PAGE), Image.BILINEAR))
        return self._addresses[path]


@functools.lru_cache(maxsize=None)
def _nothing():
    tile = Image.new("RGB", (SIDE, SIDE), GREY)
    pen, far = ImageDraw.Draw(tile), 2 * SIDE // 3
    for line in ([(SIDE // 3, SIDE // 3), (far, far)], [(SIDE // 3, far), (far, SIDE // 3)]):
        pen.line(line, (110, 110, 110), 6)
    return tile
