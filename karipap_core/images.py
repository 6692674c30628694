"""Images that lie in a folder, with the captions beside them: what a model that sees is calibrated and measured on."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.errors import InputError
from karipap_core.reading import decode, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
MOST = 48  # images of a folder that are used, spread evenly over the sorted names
FEWEST = 3  # of which each of the three uses of a calibration has one
MOST_BYTES = 32 << 20  # of one file
MOST_PIXELS = 50_000_000
MOST_CAPTION = 2000  # letters of a caption that are used


@dataclass(frozen=True)
class Images:
    """The images of a folder that are used: their files, and the caption that each has in the .txt of its name (None
    where there is none). sha256 (hex): of all their bytes and captions."""

    name: str
    path: str
    files: tuple[Path, ...]
    captions: tuple[str | None, ...]
    sums: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(" ".join(self.sums).encode()).hexdigest()

    def part(self, start: int, step: int) -> "Images":
        """Every `step`-th of these images from `start` on."""
        places = slice(start, None, step)
        return Images(self.name, self.path, self.files[places], self.captions[places], self.sums[places])

    def facts(self) -> dict:
        """What documents say of them: name, path, count and sha256."""
        return {"name": self.name, "path": self.path, "count": len(self.files), "sha256": self.sha256}

    def load(self) -> "list[Image]":
        """The images themselves, as RGB. Raises InputError for a file that is not here any more or is damaged."""
        return [opened(file, read_bytes(file, MOST_BYTES)) for file in self.files]


def read_images(folder: str | Path) -> Images:
    """The images in a folder: .png, .jpg, .webp, .bmp and .gif, at most `MOST`, every one of which is opened once.

    Raises InputError for what is no such folder, has no image, or has a file that cannot be read as one.
    """
    folder = Path(folder)
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"Folder {folder} of images cannot be read: {error.strerror}.") from None
    found = [file for file in names if file.suffix.lower() in FORMATS and not file.name.startswith(".")]
    if not found:
        raise InputError(f"Folder {folder} holds no image: name one with {', '.join(FORMATS)} files in it.")
    if len(found) > MOST:
        found = [found[index * len(found) // MOST] for index in range(MOST)]
    captions, sums = [], []
    for file in found:
        data = read_bytes(file, MOST_BYTES)
        opened(file, data)
        captions.append(_caption(file.with_suffix(".txt")))
        sums.append(hashlib.sha256(data + b"\0" + (captions[-1] or "").encode()).hexdigest())
    return Images(folder.resolve().name, str(folder.resolve()), tuple(found), tuple(captions), tuple(sums))


def opened(file: Path, data: bytes) -> "Image":
    """One image, RGB. Raises InputError where its bytes are none, or more pixels than are read."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("Images are read with Pillow, which is not installed: pip install pillow.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Image.open(io.BytesIO(data), formats=tuple(set(FORMATS.values())))
            if found.width * found.height > MOST_PIXELS:
                raise InputError(f"Image {file} has more than {MOST_PIXELS:,} pixels: give a smaller one.")
            return found.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # damaged files end in errors of many classes
        why = (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
        why = "it is none of the formats that are read" if "cannot identify" in why else why
        raise InputError(f"Image {file} cannot be read ({why}): take it out of the folder.") from None


def _caption(file: Path) -> str | None:
    if not file.is_file():
        return None
    return decode(read_bytes(file), f"Caption {file}").strip()[:MOST_CAPTION] or None
