"""Any image file to the very pixels that torchvision and timm would give."""

from __future__ import annotations

import ast
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from tlexport.preprocess import image

WHITE = [255, 255, 255]


def numbers(size=(16, 16), resize=(20, 20), mode="shortest", interpolation="bilinear", **more):
    """The numbers of a network for small images."""
    return {
        "size": list(size),
        "resize": list(resize),
        "mode": mode,
        "interpolation": interpolation,
        "fill": [124, 116, 104],
        "background": WHITE,
        **more,
    }


AS_IS = numbers(size=(8, 8), resize=(8, 8))
"""An 8 x 8 image comes out as it is."""


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A real photo (scikit-learn's temple), 640 x 427."""
    return Image.fromarray(load_sample_images().images[0])


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def odd_sizes() -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    fixed = [(224, 224), (223, 225), (256, 256), (257, 341), (31, 17), (17, 31), (1, 1), (8, 100)]
    return fixed + [tuple(map(int, rng.integers(3, 600, 2))) for _ in range(22)]


FILTERS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
    "nearest": InterpolationMode.NEAREST,
}


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (299, 342), (24, 24), (32, 40), (33, 38)])
def test_shortest_is_torchvisions_resize_and_centre_crop(scene, interpolation, size, resize):
    theirs = v2.Compose([v2.Resize(resize, FILTERS[interpolation]), v2.CenterCrop(size)])
    wanted = numbers((size, size), (resize, resize), "shortest", interpolation)
    for edges in odd_sizes():
        picture = scene.resize(edges)
        ours = image.load(saved(picture, "BMP"), wanted)
        assert np.array_equal(ours, np.asarray(theirs(picture))), edges


@pytest.mark.parametrize("size", [224, (200, 260)])
def test_squash_is_torchvisions_resize_to_both_edges(scene, size):
    edges = (size, size) if isinstance(size, int) else size
    larger = tuple(round(1.125 * edge) for edge in edges)
    theirs = v2.Compose([v2.Resize(larger, InterpolationMode.BICUBIC), v2.CenterCrop(edges)])
    for width, height in odd_sizes():
        picture = scene.resize((width, height))
        ours = image.load(saved(picture, "BMP"), numbers(edges, larger, "squash", "bicubic"))
        assert np.array_equal(ours, np.asarray(theirs(picture))), (width, height)


def test_border_is_timms_resize_keeping_the_ratio_and_padding(scene):
    fill = (124, 116, 104)
    theirs = v2.Compose(
        [
            ResizeKeepRatio((224, 224), longest=1.0, interpolation="bicubic"),
            CenterCropOrPad((224, 224), fill=fill),
        ]
    )
    for width, height in odd_sizes():
        if max(width, height) > 100 * min(width, height) or min(width, height) < 3:
            continue
        picture = scene.resize((width, height))
        ours = image.load(
            saved(picture, "BMP"), numbers((224, 224), (224, 224), "border", "bicubic")
        )
        expected = np.asarray(theirs(picture))
        assert ours.shape == expected.shape
        assert np.array_equal(ours, expected), (width, height)


def test_a_wide_network_is_timms_resize_to_cover_it(scene):
    theirs = v2.Compose(
        [ResizeKeepRatio((100, 140), interpolation="bilinear"), CenterCropOrPad((90, 126))]
    )
    for width, height in odd_sizes():
        picture = scene.resize((width, height))
        ours = image.load(saved(picture, "BMP"), numbers((90, 126), (100, 140)))
        assert np.array_equal(ours, np.asarray(theirs(picture))), (width, height)


def test_bytes_and_path_give_the_same(scene, tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(scene, "JPEG"))
    from_path = image.load(tmp_path / "a.jpg", numbers())
    assert from_path.dtype == np.uint8
    assert from_path.shape == (16, 16, 3)
    assert np.array_equal(from_path, image.load((tmp_path / "a.jpg").read_bytes(), numbers()))


def test_transparent_pixels_are_laid_on_the_background():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 100, 0, 255)
    pixels[:, 4:6] = (200, 100, 0, 0)
    pixels[:, 6:] = (0, 0, 0, 128)
    out = image.load(saved(Image.fromarray(pixels)), AS_IS)
    assert out[0, 0].tolist() == [200, 100, 0]
    assert out[0, 4].tolist() == WHITE
    assert np.abs(out[0, 7].astype(int) - 127).max() <= 1
    black = image.load(saved(Image.fromarray(pixels)), AS_IS | {"background": [0, 0, 0]})
    assert black[0, 4].tolist() == [0, 0, 0]


def test_grey_with_alpha():
    pixels = np.zeros((8, 8, 2), np.uint8)
    pixels[:, 4:] = (10, 255)
    out = image.load(saved(_la(pixels)), AS_IS)
    assert out[0, 0].tolist() == WHITE
    assert out[0, 7].tolist() == [10, 10, 10]


def _la(pixels: np.ndarray) -> Image.Image:
    return Image.merge(
        "LA", [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in (0, 1)]
    )


@pytest.mark.parametrize("entries", [0, bytes([0, 255, 255])])
def test_palettes_with_transparency(entries):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    picture.putpixel((1, 0), 2)
    out = image.load(saved(picture, transparency=entries), AS_IS)
    assert out[0, 0].tolist() == WHITE
    assert out[0, 1].tolist() == [0, 0, 255]
    assert out[7, 7].tolist() == [0, 255, 0]


def test_a_palette_without_transparency():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    assert image.load(saved(picture), AS_IS)[3, 3].tolist() == [0, 255, 0]


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_key(mode, key):
    picture = Image.new(mode, (8, 8), key)
    picture.putpixel((0, 0), 90 if mode == "L" else (90, 90, 90))
    out = image.load(saved(picture, transparency=key), AS_IS)
    assert out[5, 5].tolist() == WHITE
    assert out[0, 0].tolist() == [90, 90, 90]


def test_grey_and_one_bit_images():
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    out = image.load(saved(Image.fromarray(ramp)), AS_IS)
    assert np.array_equal(out, np.repeat(ramp[..., None], 3, axis=2))
    bits = Image.fromarray(ramp).convert("1")
    assert set(np.unique(image.load(saved(bits), AS_IS))) == {0, 255}


def test_sixteen_bits_are_scaled_and_not_clipped():
    wide = (np.arange(64, dtype=np.uint32) * 65535 // 63).astype(np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        out = image.load(saved(Image.fromarray(wide), kind), AS_IS)
        assert np.array_equal(out[..., 0], np.round(wide / 257).astype(np.uint8)), kind
        assert np.array_equal(out[..., 0], out[..., 2])


def test_sixteen_bit_colour_png():
    """Written by hand: Pillow reads this kind but does not write it."""
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 8
    out = image.load(_png(8, 8, depth=16, colour=2, rows=row * 8), AS_IS)
    assert out[0, 0].tolist() == [255, 128, 0]


def _png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_cmyk_jpegs_come_out_in_their_colours(scene):
    """A print shop's JPEG looks as the screen's does."""
    plain = image.load(saved(scene, "JPEG", quality=95), numbers())
    cmyk = image.load(saved(scene.convert("CMYK"), "JPEG", quality=95), numbers())
    assert np.abs(plain.astype(int) - cmyk.astype(int)).mean() < 12
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(image.load(saved(red, "TIFF"), AS_IS)[4, 4] - np.array([255, 0, 0])).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_undone(orientation, kind):
    """What the camera held sideways comes out upright, for all eight orientations."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = (255, 0, 0)
    upright[:4, 4:] = (0, 255, 0)
    upright[4:, :4] = (0, 0, 255)
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    out = image.load(data, AS_IS)
    assert np.abs(out.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_picture(scene):
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\xff" * 40
    out = image.load(saved(scene, "JPEG", exif=exif), numbers())
    assert np.array_equal(out, image.load(saved(scene, "JPEG"), numbers()))


def test_an_animation_gives_its_first_picture():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image.load(data, AS_IS)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("edges", [(1, 1), (1, 5000), (5000, 1), (2, 5000), (1, 2)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "border"])
def test_specks_and_strips_keep_their_colour_and_cost_little(edges, mode):
    data = saved(Image.new("RGB", edges, (10, 200, 30)))
    out = image.load(data, numbers((224, 224), (256, 256), mode))
    assert out.shape == (224, 224, 3)
    assert [10, 200, 30] in out[110:113, 110:113].reshape(-1, 3).tolist()
    colours = {tuple(pixel) for pixel in out.reshape(-1, 3).tolist()}
    assert colours <= {(10, 200, 30), (124, 116, 104)}
    assert mode == "border" or len(colours) == 1


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    data = _png(30_000, 30_000, depth=8, colour=0, rows=b"\0" * 100)
    with pytest.raises(ValueError, match=r"900000000|30000 x 30000"):
        image.load(data, numbers())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_photo_below_the_limit_is_read():
    side = 9500
    data = _png(side, side, depth=1, colour=0, rows=(b"\0" + b"\xff" * ((side + 7) // 8)) * side)
    out = image.load(data, numbers())
    assert (out == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_refused(scene, kind, share):
    whole = saved(scene, kind)
    with pytest.raises(ValueError, match=r"\w+"):
        image.load(whole[: int(share * len(whole))], numbers())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no image in a format"),
        (b"this is a text, not a picture\n" * 20, "no image in a format"),
        (b"\x89PNG\r\n\x1a\n", r"\w+"),
        (b"\xff\xd8\xff\xe0", r"\w+"),
        (bytes(1000), "no image in a format"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason_that_names_no_memory_address(
    tmp_path, data, why
):
    (tmp_path / "cat.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=why) as caught:
        image.load(tmp_path / "cat.jpg", numbers())
    assert "0x" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        image.load(tmp_path / "none.png", numbers())


def test_floating_point_pixels_are_refused_with_the_reason():
    data = saved(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF")
    with pytest.raises(ValueError, match="no stated range"):
        image.load(data, AS_IS)


def test_random_damage_gives_pixels_or_a_reason_and_nothing_else(scene):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        whole = saved(scene.resize((64, 48)), kind)
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 5):
                data[at] = int(rng.integers(256))
            try:
                out = image.load(bytes(data), numbers())
            except ValueError as error:
                assert str(error)
            else:
                assert out.shape == (16, 16, 3)


def test_suffixes_are_of_formats_that_can_be_read():
    found = image.suffixes()
    assert found >= {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    assert not found & {".pdf", ".txt", ".py"}


def test_the_file_needs_numpy_and_pillow_alone():
    tree = ast.parse(Path(image.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL"}


def test_a_copy_of_the_file_elsewhere_gives_the_same_pixels(scene, tmp_path):
    shutil.copyfile(image.__file__, tmp_path / "image.py")
    (tmp_path / "a.jpg").write_bytes(saved(scene, "JPEG"))
    code = (
        "import sys; sys.path.insert(0, '.'); import image, numpy as np; from pathlib import Path;"
        f"np.save('out.npy', image.load(Path('a.jpg'), {numbers()!r}));"
        "assert not [m for m in sys.modules if m.startswith(('tlexport', 'torch'))]"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=60)
    ours = image.load(tmp_path / "a.jpg", numbers())
    assert np.array_equal(np.load(tmp_path / "out.npy"), ours)
    assert torch.from_numpy(ours.copy()).dtype == torch.uint8
