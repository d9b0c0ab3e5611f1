"""Every kind of image file becomes the right RGB pixels, or a sentence."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import picture, write_bomb
from vqgen.data.decode import UnreadableImage, check_complete, decode, open_image, to_rgb


def stored(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """Through a file and back, as a user's image comes."""
    file = BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return open_image(file)


def center(image: Image.Image) -> tuple[int, ...]:
    pixels = decode(image, size=(16, 16), min_size=16, crop=True)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    return tuple(int(value) for value in pixels[8, 8])


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 1
    return image


ORANGE = (200, 100, 50)
MODES = {
    "RGB": (Image.new("RGB", (16, 16), ORANGE), "PNG", ORANGE),
    "RGBA opaque": (Image.new("RGBA", (16, 16), (*ORANGE, 255)), "PNG", ORANGE),
    "RGBA transparent": (Image.new("RGBA", (16, 16), (*ORANGE, 0)), "PNG", (255, 255, 255)),
    "RGBA half": (Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG", (127, 127, 127)),
    "LA": (Image.new("LA", (16, 16), (0, 0)), "PNG", (255, 255, 255)),
    "L": (Image.new("L", (16, 16), 90), "PNG", (90, 90, 90)),
    "1": (Image.new("1", (16, 16), 1), "PNG", (255, 255, 255)),
    "P": (palette(transparent=False), "PNG", (10, 20, 30)),
    "P transparent": (palette(transparent=True), "PNG", (255, 255, 255)),
    "P gif": (palette(transparent=False), "GIF", (10, 20, 30)),
    "16-bit gray": (Image.fromarray(np.full((16, 16), 200 * 257, np.uint16)), "PNG", (200,) * 3),
    "16-bit tiff": (Image.fromarray(np.full((16, 16), 200 * 257, np.uint16)), "TIFF", (200,) * 3),
    "32-bit tiff": (Image.fromarray(np.full((16, 16), 200 * 257, np.int32)), "TIFF", (200,) * 3),
    "CMYK": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "webp": (Image.new("RGBA", (16, 16), (*ORANGE, 0)), "WEBP", (255, 255, 255)),
    "bmp": (Image.new("RGB", (16, 16), ORANGE), "BMP", ORANGE),
}


@pytest.mark.parametrize("name", MODES)
def test_mode(name: str) -> None:
    image, kind, expected = MODES[name]
    assert center(stored(image, kind)) == expected


def test_color_key_of_rgb_is_transparent() -> None:
    image = stored(Image.new("RGB", (16, 16), ORANGE), transparency=ORANGE)
    assert center(image) == (255, 255, 255)


def test_cmyk_jpeg() -> None:
    red = center(stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.subtract(red, (255, 0, 0))).max() < 8


def test_floating_point_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="floating point"):
        decode(stored(Image.new("F", (16, 16)), "TIFF"), size=(16, 16), min_size=1, crop=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = picture(0, width=32, height=16)
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # stored turned left: viewers turn it right
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    turned = upright
    for step in undo.get(orientation, []):
        turned = turned.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored(turned, "PNG", exif=exif)
    pixels = decode(image, size=(16, 32), min_size=16, crop=True)
    assert np.array_equal(pixels, np.asarray(upright))


def test_half_size_is_the_mean_of_four_pixels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    pixels = decode(image, size=(32, 32), min_size=16, crop=True).astype(float)
    means = np.asarray(image).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(pixels - means).max() <= 0.5


@pytest.mark.parametrize(("width", "height"), [(100, 40), (40, 100), (20, 20), (97, 31)])
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (16, 48)])
def test_aspect_is_kept_and_the_size_covered(
    width: int, height: int, size: tuple[int, int]
) -> None:
    image = picture(1, width=width, height=height)
    pixels = decode(image, size=size, min_size=16, crop=False)
    slack = np.subtract(pixels.shape[:2], size)
    assert slack.min() == 0
    assert abs(pixels.shape[1] / pixels.shape[0] - width / height) < 0.06 * width / height
    assert decode(image, size=size, min_size=16, crop=True).shape == (*size, 3)


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::3] = 255
    pixels = decode(Image.fromarray(stripes), size=(32, 32), min_size=16, crop=True)
    assert np.abs(pixels.astype(int) - 85).max() <= 1


def test_big_jpeg_is_decoded_small_and_right() -> None:
    image = picture(2, width=1600, height=1200)
    small = decode(stored(image, "JPEG", quality=95), size=(30, 40), min_size=16, crop=True)
    exact = decode(image, size=(30, 40), min_size=16, crop=True)
    assert np.abs(small.astype(int) - exact).max() < 6


def test_small_image() -> None:
    with pytest.raises(UnreadableImage, match=r"15 x 40 pixels, smaller than data\.min_size=16"):
        decode(picture(0, width=15, height=40), size=(32, 32), min_size=16, crop=True)


def test_decompression_bomb(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImage, match="more than 178 million pixels"):
        open_image(str(tmp_path / "bomb.png"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_truncated_file(kind: str) -> None:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        file, kind
    )
    half = BytesIO(file.getvalue()[: len(file.getvalue()) // 2])
    check_complete(open_image(file))
    with pytest.raises(UnreadableImage):
        check_complete(open_image(half))
    with pytest.raises(UnreadableImage):
        decode(open_image(half), size=(16, 16), min_size=16, crop=True)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_image(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match="is not an image"):
        open_image(BytesIO(content))


def test_conversion_leaves_rgb_alone() -> None:
    image = picture(3)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image))
