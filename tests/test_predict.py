"""predict.py: pictures of every kind come to the pixels they should, and bad ones stop nothing."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import data
import predict

SAMPLE = 4  # an image of the built-in sample's validation split


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
    picture = predict.read_picture(path)
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.uint8
    (red_green_blue,) = {tuple(pixel) for pixel in picture.flatten(1).T.tolist()}
    return red_green_blue


def flat(mode, value, size=(40, 30)):
    return Image.new(mode, size, value)


# --------------------------------------------------------------------------------- reading pictures


def test_a_picture_of_the_right_size_is_not_changed(pixels, tmp_path):
    path = save(tmp_path / "a.png", pixels.permute(1, 2, 0))
    assert torch.equal(predict.read_picture(path), pixels)


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
    assert torch.equal(predict.read_picture(path), pixels)


def test_the_square_at_the_centre_counts(tmp_path):
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = (0, 200, 0)
    assert colour(save(tmp_path / "wide.png", wide)) == (0, 200, 0)
    assert colour(save(tmp_path / "tall.png", wide.transpose(1, 0, 2))) == (0, 200, 0)


def test_shrinking_averages_and_one_pixel_is_enough(tmp_path):
    stripes = np.tile(np.array([[0, 255]], np.uint8), (320, 160))  # finer than can be shown
    picture = predict.read_picture(save(tmp_path / "stripes.png", stripes)).float()
    assert (picture - 127.5).abs().max() < 10
    assert colour(save(tmp_path / "dot.png", np.full((1, 1), 7, np.uint8))) == (7, 7, 7)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_line_is_a_picture(size, tmp_path):
    flat("RGB", (5, 6, 7), size).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == (5, 6, 7)


# -------------------------------------------------------------------------------------- the program


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
    assert f"no picture in {empty}" in refused("predict.py", "--checkpoint", weights, empty)
    assert "required: PICTURE" in refused("predict.py")


def test_a_decompression_bomb_is_refused(pictures, weights, program, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32)
    status, out, err = program("predict.py", "--checkpoint", weights, pictures / "b.jpg")
    assert (status, out) == (2, "")
    assert err == f"{pictures / 'b.jpg'}: more than 1,024 pixels\n"
    flat("L", 0, (50, 50)).save(pictures / "bomb.png")  # over twice as many, Pillow's own limit
    *_, err = program("predict.py", "--checkpoint", weights, pictures / "bomb.png")
    assert err == f"{pictures / 'bomb.png'}: more than 1,024 pixels\n"


def test_bad_settings_are_one_line(pictures, weights, refused, tmp_path):
    picture = pictures / "a.png"
    line = refused("predict.py", "--checkpoint", tmp_path / "no.pt", picture)
    assert f"no checkpoint at {tmp_path / 'no.pt'}" in line
    assert "is damaged or is not" in refused("predict.py", "--checkpoint", picture, picture)
    for top in (0, 11):
        line = refused("predict.py", "--checkpoint", weights, "--top", top, picture)
        assert "choose 1 to 10 classes" in line
    grid = tmp_path / "missing" / "grid.png"
    assert str(grid) in refused("predict.py", "--checkpoint", weights, "--grid", grid, picture)
