"""predict.py: pictures of every kind come to the pixels they should, and bad ones stop nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import ROOT
from PIL import Image, ImageFile

import data
from data import pictures as pictures_module
from training import checkpoint as checkpoints

SAMPLE = 4  # an image of the built-in sample's validation split
# Orientation 6, and a resolution in words, which Pillow reads and does not write.
ODD_EXIF = (
    b"MM\0*\0\0\0\x08\0\x02"
    b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    b"\x01\x1a\0\x02\0\0\0\x03" + b"72\0\0"
    b"\0\0\0\0"
)


@pytest.fixture(scope="module")
def pixels():
    """uint8 (3, 32, 32)"""
    return data.load("sample", data.DEFAULT_DIRECTORY, "val").images[SAMPLE]


def save(path, array, **options):
    """Write an array (H, W) or (H, W, C) as a picture."""
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def colour(path):
    """The one colour (r, g, b) that a picture has after reading."""
    picture = data.read_picture(path)
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.uint8
    (red_green_blue,) = {tuple(pixel) for pixel in picture.flatten(1).T.tolist()}
    return red_green_blue


def flat(mode, value, size=(40, 30)):
    return Image.new(mode, size, value)


# --------------------------------------------------------------------------------- reading pictures


def test_a_picture_of_the_right_size_is_not_changed(pixels, tmp_path):
    path = save(tmp_path / "a.png", pixels.permute(1, 2, 0))
    assert torch.equal(data.read_picture(path), pixels)


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("I;16", 77 * 256 + 5, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 200, 51), (204, 224, 244)),  # a fifth of it over white
        ("LA", (0, 51), (204, 204, 204)),
    ],
)
def test_every_mode_comes_to_rgb_over_white(mode, value, expected, tmp_path):
    flat(mode, value).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == expected


def test_palettes_and_their_transparent_colour(tmp_path):
    palette = flat("P", 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "transparent.png", transparency=1)
    palette.save(tmp_path / "half.png", transparency=bytes([255, 0]))
    assert colour(tmp_path / "opaque.png") == (10, 20, 30)
    assert colour(tmp_path / "transparent.png") == (255, 255, 255)
    assert colour(tmp_path / "half.png") == (255, 255, 255)


def test_cmyk_and_more_than_8_bits(tmp_path):
    flat("CMYK", (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert colour(tmp_path / "a.jpg") == (255, 255, 255)
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535 " + 4 * bytes([77, 5]))
    assert colour(tmp_path / "a.pgm") == (77, 77, 77)


def test_an_animation_counts_by_its_first_frame(tmp_path):
    frames = [flat("RGB", c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        assert colour(tmp_path / name) == (255, 0, 0), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation, pixels, tmp_path):
    # How a camera that is held in that way stores the picture: EXIF 2.32, tag 274.
    stored = {
        1: lambda p: p,
        2: lambda p: p.flip(2),
        3: lambda p: p.flip(1, 2),
        4: lambda p: p.flip(1),
        5: lambda p: p.transpose(1, 2),
        6: lambda p: p.rot90(1, (1, 2)),
        7: lambda p: p.transpose(1, 2).flip(1, 2),
        8: lambda p: p.rot90(-1, (1, 2)),
    }[orientation](pixels)
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "a.png", stored.permute(1, 2, 0).contiguous(), exif=exif)
    assert torch.equal(data.read_picture(path), pixels)


@pytest.mark.parametrize("raw", [b"XX no directory", ODD_EXIF], ids=["damaged", "odd"])
def test_exif_that_is_odd_or_damaged_costs_no_picture(raw, pixels, tmp_path):
    stored = pixels.rot90(1, (1, 2)) if raw == ODD_EXIF else pixels
    path = save(tmp_path / "a.png", stored.permute(1, 2, 0).contiguous(), exif=b"Exif\0\0" + raw)
    assert torch.equal(data.read_picture(path), pixels)


def test_a_png_with_damaged_pixels_is_refused(pixels, tmp_path):
    path = save(tmp_path / "a.png", pixels.permute(1, 2, 0).contiguous())
    raw = bytearray(path.read_bytes())
    raw[200:220] = bytes(range(20))
    path.write_bytes(raw)
    with pytest.raises(data.PictureError, match="a damaged one"):
        data.read_picture(path)


def test_the_square_at_the_centre_counts(tmp_path):
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = (0, 200, 0)
    assert colour(save(tmp_path / "wide.png", wide)) == (0, 200, 0)
    assert colour(save(tmp_path / "tall.png", wide.transpose(1, 0, 2))) == (0, 200, 0)


def test_shrinking_averages_and_one_pixel_is_enough(tmp_path):
    stripes = np.tile(np.array([[0, 255]], np.uint8), (320, 160))  # finer than can be shown
    picture = data.read_picture(save(tmp_path / "stripes.png", stripes)).float()
    assert (picture - 127.5).abs().max() < 10
    assert colour(save(tmp_path / "dot.png", np.full((1, 1), 7, np.uint8))) == (7, 7, 7)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_line_is_a_picture(size, tmp_path):
    flat("RGB", (5, 6, 7), size).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == (5, 6, 7)


@pytest.mark.parametrize("padding", [(0.2, 0.4, 0.6)])
def test_the_whole_picture_keeps_its_proportions(padding, tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (48, 1, 3))  # 64 x 48
    square = data.read_picture(save(tmp_path / "a.png", ramp), padding)
    edge = torch.tensor([51, 102, 153], dtype=torch.uint8).view(3, 1, 1)
    assert (square[:, :4] == edge).all() and (square[:, -4:] == edge).all()
    middle = square[:, 4:-4].int()
    expected = torch.arange(32) * 8 + 2  # the mean of two neighbours
    assert (middle[..., 2:-2] - expected[2:-2]).abs().max() <= 1
    assert middle[0, 0, 0] < 8 and middle[0, 0, -1] > 244  # nothing is cut off
    line = data.read_picture(save(tmp_path / "line.png", np.zeros((1, 3000), np.uint8)), padding)
    assert (line == 0).all(0).sum() == 32


@pytest.mark.parametrize(
    "start, name",
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
    ],
)
def test_a_format_that_is_not_read_is_named(start, name, tmp_path):
    (tmp_path / "a.png").write_bytes(start + bytes(100))
    with pytest.raises(data.PictureError, match=f"^{name}.* is not supported"):
        data.read_picture(tmp_path / "a.png")


def test_no_format_that_starts_a_program_is_read(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    flat("RGB", (1, 2, 3)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(data.PictureError, match="PostScript is not supported"):
        data.read_picture(tmp_path / "a.jpg")
    assert started == []


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")  # opening it would wait for ever
    for path in (tmp_path / "fifo.png", Path(os.devnull), Path("/dev/zero")):
        with pytest.raises(data.PictureError, match="^not a file$"):
            data.read_picture(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    flat("1", 1, (9400, 9400)).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(data.PictureError, match="^more than 16,000,000 pixels"):
        data.read_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit comes first
    with pytest.raises(data.PictureError, match="^more than 50,000,000 pixels"):
        data.read_picture(tmp_path / "a.png")


def test_a_large_jpeg_is_decoded_at_a_part_of_its_resolution(tmp_path):
    flat("RGB", (200, 100, 50), (6000, 6000)).save(tmp_path / "a.jpg")
    sizes = []
    crop = pictures_module.crop_square
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures_module, "crop_square", lambda i: sizes.append(i.size) or crop(i))
        red, green, blue = data.read_picture(tmp_path / "a.jpg").float().mean((1, 2))
    assert sizes == [(1500, 1500)]
    assert abs(red - 200) < 2 and abs(green - 100) < 2 and abs(blue - 50) < 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of memory")
def test_the_largest_pictures_take_at_most_300_mb(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    flat("LA", (3, 100), (4000, 4000)).save(tmp_path / "a.png", exif=exif)
    flat("I;16", 300, (4000, 4000)).save(tmp_path / "b.png", exif=exif)
    flat("RGBA", (3, 4, 5, 100), (4000, 4000)).save(tmp_path / "c.webp", lossless=True, method=0)
    code = (
        "import re, sys, pathlib, data;"
        "status = pathlib.Path('/proc/self/status');"  # getrusage counts what the parent took, too
        "used = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', status.read_text())[1]);"
        "before = used(); [data.read_picture(p) for p in pathlib.Path(sys.argv[1]).iterdir()];"
        "print(used() - before)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 90 * 1024 < int(output) < 300 * 1024  # kilobytes


# -------------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def weights(weights, tmp_path_factory):
    """As those that are released: trained on CIFAR-10."""
    content = checkpoints.load_checkpoint(weights)
    content["data"]["source"] = "cifar10"
    path = tmp_path_factory.mktemp("cifar10") / "weights.safetensors"
    checkpoints.save_checkpoint(path, content)
    return path


@pytest.fixture
def pictures(pixels, tmp_path):
    """A folder of two pictures, and of what is none."""
    folder = tmp_path / "pictures"
    (folder / "subfolder").mkdir(parents=True)
    save(folder / "a.png", pixels.permute(1, 2, 0))
    flat("L", 128).save(folder / "b.jpg")
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.gif").touch()
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("nor this, but nobody asked")
    return folder


def test_json_holds_the_networks_probabilities(pictures, pixels, network, weights, program):
    arguments = ["--checkpoint", weights, "--json", "--top", 10, pictures / "a.png"]
    status, out, err = program("predict.py", *arguments)
    assert (status, err) == (0, "")
    (line,) = map(json.loads, out.splitlines())
    assert line["picture"] == str(pictures / "a.png")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.MEAN, data.STD))
    with torch.no_grad():
        expected = network(((pixels / 255 - mean) / std)[None]).softmax(1)[0]
    probabilities = {row["class"]: row["probability"] for row in line["predictions"]}
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    for name, value in zip(data.CLASSES, expected.tolist(), strict=True):
        assert probabilities[name] == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_a_folder_is_classified_around_what_is_no_picture(pictures, weights, program):
    status, out, err = program("predict.py", "--checkpoint", weights, pictures)
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == [str(pictures / "a.png"), str(pictures / "b.jpg")]
    assert all(row[1] in data.CLASSES and row[3] == "%" and len(row) == 10 for row in rows)
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(pictures / name) for name in ("cut.png", "empty.gif", "notes.txt")
    ]
    assert all("not a picture, or a damaged one" in line for line in lines)


def test_the_grid_is_drawn(pictures, weights, program, tmp_path):
    arguments = ["--checkpoint", weights, "--grid", tmp_path / "grid.png", pictures]
    status, _, _ = program("predict.py", *arguments)
    assert status == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG" and grid.width == 1260


def test_names_that_no_terminal_can_print(pictures, weights, program):
    strange = os.fsencode(pictures) + b"/\xff\n\x1b[31m.png"
    os.rename(pictures / "a.png", strange)
    status, out, err = program("predict.py", "--checkpoint", weights, os.fsdecode(strange))
    assert status == 0 and err == ""
    (line,) = out.splitlines()
    assert r"\udcff\n\x1b[31m.png" in line


def test_without_any_picture_the_status_is_2(pictures, weights, program, refused, tmp_path):
    bad = [pictures / "notes.txt", tmp_path / "no.png"]
    status, out, err = program("predict.py", "--checkpoint", weights, *bad)
    assert (status, out) == (2, "")
    first, second = err.splitlines()
    assert first == f"{bad[0]}: not a picture, or a damaged one"
    assert second == f"{bad[1]}: no such file"
    empty = pictures / "subfolder"
    assert f"no pictures in {empty}" in refused("predict.py", "--checkpoint", weights, empty)
    assert "required: PICTURE" in refused("predict.py")


def test_weights_that_saw_the_sample_alone_are_called_so(pictures, weights, program, tmp_path):
    content = checkpoints.load_checkpoint(weights)
    content["data"]["source"] = "sample"
    checkpoints.save_checkpoint(tmp_path / "sample.pt", content)
    arguments = ["--checkpoint", tmp_path / "sample.pt", pictures / "a.png"]
    status, out, err = program("predict.py", *arguments)
    assert status == 0 and out.count("\n") == 1
    assert "warning" in err and "2,000 images of the built-in sample" in err
    assert err.count("\n") == 1


def test_a_whole_picture_can_be_classified(pictures, weights, program):
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = 255
    save(pictures / "wide.png", wide)
    arguments = ["predict.py", "--checkpoint", weights, "--json", pictures / "wide.png"]
    (_, square, _), (_, whole, _) = program(*arguments), program(*arguments, "--whole")
    assert square != whole


def test_bad_settings_are_one_line(pictures, refused, tmp_path):
    picture = pictures / "a.png"
    line = refused("predict.py", "--checkpoint", tmp_path / "no.pt", picture)
    assert f"no checkpoint at {tmp_path / 'no.pt'}" in line
    assert "is damaged or is not" in refused("predict.py", "--checkpoint", picture, picture)


@pytest.mark.parametrize("name", ["", "/", ".", "/dev/full", "grid", "grid.jpg", "missing/a.png"])
def test_a_grid_that_cannot_be_written_is_refused_at_once(name, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("predict.py", "--checkpoint", "none.pt", "--grid", name, "no.png")
    assert "--grid" in line and name in line  # and not the checkpoint, which is read later
    assert list(tmp_path.iterdir()) == []


def test_a_grid_replaces_nothing_but_a_file(refused, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("folder.png", "device.png", "fifo.png"):
        line = refused("predict.py", "--checkpoint", "none.pt", "--grid", tmp_path / name, "no.png")
        assert "--grid" in line and "is not a file" in line
    assert (tmp_path / "device.png").is_symlink() and (tmp_path / "fifo.png").is_fifo()
