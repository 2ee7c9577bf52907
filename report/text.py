"""What stands in a page: text, links and pictures. Names of classes and files may hold anything, so all is escaped."""
import base64
import html
import io
import os
import urllib.parse

from dataset import shown

JPEG_QUALITY = 78


def escaped(words):
    """Return text for HTML, also within quotation marks; what can't be printed as Python writes it."""
    return html.escape(shown(str(words)), quote=True)


def breakable(words):
    """Return ``escaped`` words that may be broken behind "_" and "/", as names of classes and files have them."""
    return escaped(words).replace("_", "_<wbr>").replace("/", "/<wbr>")


def link_to(path, directory):
    """Return the address of a file as seen from a page in ``directory``: both may be moved together."""
    try:
        path = os.path.relpath(os.path.abspath(path), os.path.realpath(directory))
    except ValueError:  # on another drive of Windows
        return "file:///" + urllib.parse.quote(os.path.abspath(path).replace(os.sep, "/"))
    return urllib.parse.quote(os.fsencode(path.replace(os.sep, "/")))


def data_uri(image):
    """Return a PIL image as an address that holds it, a JPEG."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
