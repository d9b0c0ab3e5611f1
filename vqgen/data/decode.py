"""From any image file to RGB pixels of the wanted size, or the reason why not."""

from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps

from vqgen.contracts import Size

Crop = Literal["center", "random"]

# What is decoded. Not everything Pillow knows: EPS would start Ghostscript, and MPEG or FITS are
# no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")

# The last bytes of a file that was written to its end; other formats are decoded to find out.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


class UnreadableImage(ValueError):
    """The reason why one image cannot be used, without its name: the caller knows that."""

    def __init__(self, reason: str) -> None:
        # raised in a loader process, it arrives behind that one's traceback
        super().__init__(reason.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def open_image(file: str | IO[bytes]) -> Image.Image:
    """Path or binary file -> Pillow image, its header read and its pixels not.

    Raises UnreadableImage: not an image, missing, or so large that decoding it would exhaust the
    memory.
    """
    Image.init()
    formats = tuple(name for name in _FORMATS if name in Image.OPEN)
    try:
        return Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UnreadableImage(
            f"has more than {limit} million pixels: scale it down first"
        ) from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage("is not an image") from None
    except Exception as error:  # damaged headers make Pillow's plugins raise nearly anything
        raise UnreadableImage(f"cannot be opened ({error or type(error).__name__})") from None


def decode(image: Image.Image, *, size: Size, min_size: int, crop: bool) -> np.ndarray:
    """Pillow image -> uint8 [h, w, 3], resized to just cover `size` = (height, width), aspect kept.

    With `crop` the center of exactly `size` is cut out; without, the longer side keeps what a crop
    will choose from. Resizing averages whole pixels for the integer part of the factor and is
    bicubic (antialiased) for the rest.
    Raises UnreadableImage: damaged, or shorter side under `min_size` pixels.
    """
    check_header(image, min_size=min_size)
    try:
        image.draft(None, (2 * max(size), 2 * max(size)))  # big JPEGs: decode at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(image, in_place=True)
        image = to_rgb(image)
        image = image.resize(_covering(image, size), Image.Resampling.BICUBIC, reducing_gap=1.0)
        pixels = np.asarray(image)
    except UnreadableImage:
        raise
    except Exception as error:  # as above: damaged pixels raise nearly anything
        raise UnreadableImage(f"cannot be decoded ({error or type(error).__name__})") from None
    # A copy: a view would keep the whole image in memory
    return cut(pixels, size, CENTER, CENTER).copy() if crop else pixels


# floor(CENTER * (slack + 1)) == slack // 2: the largest number under one half
CENTER = float(np.nextafter(0.5, 0))


def cut(pixels: np.ndarray, size: Size, down: float, right: float) -> np.ndarray:
    """[h, w, 3] -> a view [height, width, 3], placed by `down` and `right` in [0, 1)."""
    height, width = size
    top = int(down * (pixels.shape[0] - height + 1))
    left = int(right * (pixels.shape[1] - width + 1))
    return pixels[top : top + height, left : left + width]


def check_header(image: Image.Image, *, min_size: int) -> None:
    """Raise UnreadableImage if the shorter side is under `min_size` pixels."""
    width, height = image.size
    if min(image.size) < min_size:
        raise UnreadableImage(
            f"is {width} x {height} pixels, smaller than data.min_size={min_size}"
        )


def check_complete(image: Image.Image) -> None:
    """Raise UnreadableImage if the file stops early.

    A JPEG or PNG whose last bytes are its format's end mark is taken to be whole, any other file
    is decoded to find out: some cameras write past the mark."""
    try:
        ending = _ENDINGS.get(image.format or "")
        if ending and ending in _last_bytes(image):
            return
        image.load()
    except Exception as error:
        raise UnreadableImage(f"cannot be decoded ({error or type(error).__name__})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: transparent parts on white, of 16 bits per channel the upper 8.

    Raises UnreadableImage for floating point images, whose white is unknown."""
    if image.mode == "F":
        raise UnreadableImage("holds floating point pixels: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # I;16, I;16B, I: Pillow's convert would clip them at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _covering(image: Image.Image, size: Size) -> tuple[int, int]:
    """Pillow's (width, height) of the smallest image of this aspect that covers (height, width)."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    return max(width, round(image.width * scale)), max(height, round(image.height * scale))


def _last_bytes(image: Image.Image, how_many: int = 32) -> bytes:
    file = image.fp  # type: ignore[attr-defined]  # Pillow's stubs leave it out
    place = file.tell()
    file.seek(0, 2)
    file.seek(max(0, file.tell() - how_many))
    ending = file.read()
    file.seek(place)
    return ending
