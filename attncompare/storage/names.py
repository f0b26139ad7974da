"""Names that are safe for files, whatever a user or a data set calls things."""

import re
from hashlib import sha256

DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names of Windows, whatever the ending


def folder_of(image: str) -> str:
    """The name of an image's folder: like `slug`, without the dot of its ending."""
    return slug(image).replace(".", "-")


def slug(name: str) -> str:
    """A name made safe for a file: letters, digits, dots and dashes, and a hash of what was changed.

    Different names stay different where capitals do not count, and no name is one that Windows keeps for a device.

    >>> slug("cat.png"), slug("demo/vit"), slug("../../etc/passwd")[:10], slug("con.png")[:8]
    ('cat.png', 'demo-vit-f81d54', 'etc-passwd', '_con.png')
    """
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80]
    plain = f"_{plain}" if DEVICE.match(plain) else plain
    if plain == name == name.lower():
        return plain
    digits = 6 if name.isascii() and len(name) <= 80 else 16  # of long or foreign names little else may be left
    return f"{plain}-{sha256(name.encode('utf-8', 'backslashreplace')).hexdigest()[:digits]}"
