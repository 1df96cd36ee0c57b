"""The figures: complete PNG files that say what they were given, with nothing overlapping."""

import itertools
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.image
import matplotlib.style
import numpy as np
import pytest
import torch
from fakes import ROOT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import plots
from plots import System
from plots.evaluation import wilson_interval

CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TITLE = (
    "the default network on the built-in SAMPLE (2,000 training images, 500 validation images), "
    "60 epochs, seed 0, costs $5 or $6"
)


def history(epochs: int, evaluated: bool = True) -> list[dict]:
    rows = []
    for epoch in range(1, epochs + 1):
        falling = float(np.exp(-epoch / 10))
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 0.75 + falling,
                "train_accuracy": 0.90 - 0.5 * falling,
                "eval_loss": 0.25 + falling if evaluated else None,
                "eval_accuracy": 0.92 - 0.5 * falling if evaluated else None,
                "learning_rate": 0.1,
                "seconds": 60.0,
                "images_per_second": 750.0,
            }
        )
    return rows


def predictions(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, true classes, predicted classes (none of them right) and confidences."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    true = torch.arange(count) % 10
    return images, true, (true + 1) % 10, torch.rand(count, generator=generator)


SCALING = {
    "images": [(2_000, 4.1), (6_000, 9.0), (16_000, 20.5), (50_000, 61.0)],
    "batch size": [(2**k, 60.0 + 2000 / 2**k) for k in range(4, 11)],
    "threads": [(1, 101.0), (2, 60.0)],
}


def pictures(count: int, top: int = 3) -> tuple[torch.Tensor, list[str], list]:
    """Pictures, names that need care, and what the pictures are taken for."""
    names = ["a_name_of_more_than_twenty_letters.jpeg", "$5_^.png", "\u732b.png", "cat.png"]
    classes = [(name, 0.9 - 0.1 * rank) for rank, name in enumerate(CLASSES[:top])]
    return predictions(count)[0], [names[i % 4] for i in range(count)], [classes] * count


def explained(count: int, attentions: int = 3) -> tuple:
    """Images, captions, maps, and the gates of ten images more."""
    random = np.random.default_rng(0)
    caption = "true: horse\npredicted: truck\n(100.0 %)"
    gates = {f"attention {k}": random.random((count + 10, 128)) for k in range(attentions)}
    return predictions(count)[0], [caption] * count, random.random((count, 16, 16)), gates


def augmented(count: int, epochs: int) -> tuple:
    """Originals, what each epoch makes of them, and labels."""
    images = predictions(count)[0]
    return images, [255 - images // (epoch + 1) for epoch in range(epochs)], CLASSES[:count]


ABLATION = {
    "the complete network\n96,118 parameters": {0: 0.9, 1: 0.91},
    "without dilation": {0: 0.893, 1: 0.899},
    "ordinary convolutions that take many more weights instead of $x$": {1: 0.80, 0: 0.81},
}
PUBLISHED = [
    System("close to the first", 97_530, 0.932, 0.932),
    System("closer", 96_500, 0.929, 0.929),
    System("fewer and more", 40_000, 0.91, 0.91, fewer=True, more=True),
    System("a range", 78_666, 0.86, 0.87),
]


def confusion() -> np.ndarray:
    return np.diag([4000] * 10) + np.arange(100).reshape(10, 10) ** 2 // 20


DRAW = {
    "validation": lambda path: plots.validation(
        history(60),
        path,
        title=TITLE,
        eval_split="val",
        loss="label-smoothed loss",
        averaged=True,
        precision="bf16",
    ),
    "validation of one epoch": lambda path: plots.validation(history(1), path, title=TITLE),
    "validation, not evaluated": lambda path: plots.validation(
        history(300, evaluated=False), path, title=TITLE
    ),
    "class_accuracy": lambda path: plots.class_accuracy(
        confusion().diagonal(), confusion().sum(axis=1), CLASSES, path, title=TITLE
    ),
    "class_accuracy, all correct": lambda path: plots.class_accuracy(
        [4500] * 10, [4500] * 10, CLASSES, path, title=TITLE
    ),
    "confusion_matrix": lambda path: plots.confusion_matrix(
        confusion(), CLASSES, path, title=TITLE
    ),
    "mistakes": lambda path: plots.mistakes(*predictions(40), CLASSES, path, title=TITLE),
    "one mistake": lambda path: plots.mistakes(*predictions(1), CLASSES, path, title=TITLE),
    "no mistakes": lambda path: plots.mistakes(*predictions(0), CLASSES, path, title=TITLE),
    "augmentation": lambda path: plots.augmentation(*augmented(10, 4), path, title=TITLE),
    "scaling": lambda path: plots.scaling(SCALING, path, title=TITLE),
    "scaling of one number of images": lambda path: plots.scaling(
        {"images": [(1500, 3.2)]}, path, title=TITLE
    ),
    "ablation": lambda path: plots.ablation(ABLATION, path, title=TITLE),
    "ablation without a great loss": lambda path: plots.ablation(
        {"the complete network": {0: 0.9}, "$x$": {0: 0.899}}, path, title=TITLE
    ),
    "landscape": lambda path: plots.landscape(
        {"ours": [System("under100k", 96_118, 0.93, 0.93)], "published": PUBLISHED},
        path,
        title=TITLE,
    ),
    "landscape of one": lambda path: plots.landscape(
        {"x": [System("a", 100, 0.5, 0.5)]}, path, title=TITLE
    ),
    "predictions": lambda path: plots.predictions(*pictures(7), path, title=TITLE),
    "one prediction, all classes": lambda path: plots.predictions(
        *pictures(1, top=10), path, title=TITLE
    ),
    "explanations": lambda path: plots.explanations(*explained(4), path, title=TITLE),
    "one explanation, no attention": lambda path: plots.explanations(
        *explained(1, attentions=0), path, title=TITLE
    ),
    "one explanation of one attention": lambda path: plots.explanations(
        *explained(1, attentions=1), path, title=TITLE
    ),
    "five explanations, no attention": lambda path: plots.explanations(
        *explained(5, attentions=0), path, title=TITLE
    ),
    "one augmented image": lambda path: plots.augmentation(*augmented(1, 1), path, title=TITLE),
}


@pytest.fixture
def figures(monkeypatch):
    """The Figure objects that were saved, in order."""
    saved = []
    savefig = Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def shown_texts(figure: Figure) -> list[Text]:
    """The texts that are drawn: matplotlib keeps labels of ticks outside the axes, too."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                outside = not low <= tick.get_loc() <= high
                if outside or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
    texts = figure.findobj(Text)
    return [text for text in texts if text.get_visible() and text.get_text() and text not in hidden]


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in shown_texts(figure)).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
def test_a_complete_png_with_readable_text(name, tmp_path, figures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DRAW[name](tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    pixels = matplotlib.image.imread(tmp_path / "figure.png", format="png")
    assert pixels.shape[1] == 1260  # what the README shows in about 830 pixels
    assert pixels[..., :3].std() > 0

    (figure,) = figures
    assert TITLE in words(figure)
    boxes = {text: text.get_window_extent() for text in shown_texts(figure)}
    for text, box in boxes.items():
        assert text.get_fontsize() >= 9, text
        inside = figure.bbox.padded(1)
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), text
    for (text, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (text, other)


def test_validation_draws_both_splits_in_percent_and_nats(tmp_path, figures):
    rows = history(60)
    rows[-1].update(eval_accuracy=0.9148, eval_loss=0.2625)
    plots.validation(
        rows, tmp_path / "figure.png", title="", eval_split="val", loss="distillation loss"
    )
    accuracy, loss = figures[0].axes
    assert (accuracy.get_ylabel(), loss.get_ylabel()) == ("accuracy (%)", "loss (nats per image)")
    for axes, key, scale in ((accuracy, "accuracy", 100), (loss, "loss", 1)):
        assert axes.get_xlabel() == "epoch"
        train, evaluated = axes.get_lines()
        for line, prefix in ((train, "train"), (evaluated, "eval")):
            np.testing.assert_allclose(line.get_xdata(), range(1, 61))
            expected = [scale * row[f"{prefix}_{key}"] for row in rows]
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert train.get_linestyle() != evaluated.get_linestyle()
        assert train.get_marker() != evaluated.get_marker()
    assert [text.get_text() for text in accuracy.texts] == ["91.48 %"]
    assert "training (augmented, distillation loss)" in words(figures[0])
    assert "val split" in words(figures[0]) and "averaged" not in words(figures[0])


def test_validation_says_which_network_it_scored_and_how(tmp_path, figures):
    path = tmp_path / "figure.png"
    plots.validation(history(3), path, title="", eval_split="val", averaged=True, precision="bf16")
    assert "val split (averaged weights, scored in bf16)" in words(figures[0])


def test_validation_without_evaluation_draws_training_alone(tmp_path, figures):
    plots.validation(history(5, evaluated=False), tmp_path / "figure.png", title="")
    for axes in figures[0].axes:
        assert [line.get_label() for line in axes.get_lines()] == ["training"]
    assert "split" not in words(figures[0])


def test_validation_leaves_out_epochs_that_were_not_evaluated(tmp_path, figures):
    rows = history(4)
    rows[1].update(eval_accuracy=None, eval_loss=None)
    rows[3].update(eval_accuracy=float("nan"), eval_loss=float("nan"))
    plots.validation(rows, tmp_path / "figure.png", title="")
    for axes in figures[0].axes:
        assert list(axes.get_lines()[1].get_xdata()) == [1, 3]


def test_validation_marks_a_single_epoch_and_says_both_values(tmp_path, figures):
    rows = history(1)
    rows[0].update(train_accuracy=0.4, eval_accuracy=0.5, train_loss=1.5, eval_loss=1.25)
    plots.validation(rows, tmp_path / "figure.png", title="")
    ends = ["50.00 %", "40.00 %"], ["1.250", "1.500"]
    for axes, values in zip(figures[0].axes, ends, strict=True):
        assert 1 in axes.get_xticks() and all(tick == int(tick) for tick in axes.get_xticks())
        for line in axes.get_lines():
            assert line.get_marker() not in (None, "None") and line.get_markevery() == [0]
        assert [text.get_text() for text in axes.texts] == values


def test_class_accuracy_is_sorted_and_prints_each_class_and_all(tmp_path, figures):
    correct, total = torch.tensor([0, 0, 3, 4]), torch.tensor([0, 2, 4, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a division by the zero images of the first class
        plots.class_accuracy(correct, total, CLASSES[:4], tmp_path / "figure.png", title="")
    (axes,) = figures[0].axes
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [dot.get_xydata().tolist() for dot in dots] == [
        [[100, 0]],
        [[75, 1]],
        [[0, 2]],
        [[70, 4]],
    ]
    labels = [" ".join(text.get_text().split()) for text in axes.texts]
    assert labels == [
        "100.0 % (4/4)",
        "75.0 % (3/4)",
        "0.0 % (0/2)",
        "no images",
        "70.0 % (7/10)",
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat", "bird", "car", "plane", "all"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # row 0 on top


def test_class_accuracy_shows_differences_and_whole_intervals(tmp_path, figures):
    correct, total = [433, 450, 455, 482], [500] * 4
    plots.class_accuracy(correct, total, CLASSES[:4], tmp_path / "figure.png", title="")
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    assert 80 < low and high <= 100
    bars = [line.get_xdata() for line in axes.get_lines() if line.get_solid_capstyle() == "butt"]
    expected = [wilson_interval(right, 500) for right in (482, 455, 450, 433)]
    np.testing.assert_allclose(bars[:4], 100 * np.array(expected))
    assert low <= 100 * expected[-1][0] and 100 * expected[0][1] <= high


def test_wilson_intervals_are_those_of_the_score_test():
    """Their ends are the shares from which the count seen lies 1.96 standard deviations away."""
    for correct, total in ((1, 10), (433, 500), (4662, 5000), (7, 10)):
        for end in wilson_interval(correct, total):
            deviation = np.sqrt(end * (1 - end) / total)
            assert abs(correct / total - end) / deviation == pytest.approx(1.959964, rel=1e-6)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == pytest.approx(1)
    assert wilson_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)


def test_confusion_matrix_has_rows_of_true_classes_and_legible_counts(tmp_path, figures):
    matrix = torch.from_numpy(confusion())
    matrix[3] = 0  # a class without images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.confusion_matrix(matrix, CLASSES, tmp_path / "figure.png", title="")
    axes = figures[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    (image,) = axes.get_images()
    for text in axes.texts:
        column, row = text.get_position()
        assert text.get_text() == str(matrix[row, column].item())
        cell = image.to_rgba(image.get_array()[row, column])[:3]
        assert contrast(to_rgb(text.get_color()), cell) >= 4.5
    assert len(axes.texts) == 100


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The contrast ratio of WCAG 2.2, which asks for 4.5 of text."""

    def luminance(rgb: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
def test_mistakes_are_the_most_confident_ones_in_order(tmp_path, figures):
    images, true, predicted, confidence = predictions(60)
    predicted[::2] = true[::2]  # correct, and to be left out
    plots.mistakes(images, true, predicted, confidence, CLASSES, tmp_path / "figure.png", title="")
    wrong = sorted(range(1, 60, 2), key=lambda index: -confidence[index])[:25]
    assert len(figures[0].axes) == len(wrong)
    for axes, index in zip(figures[0].axes, wrong, strict=True):
        expected = (CLASSES[true[index]], CLASSES[predicted[index]], f"{confidence[index]:.1%}")
        pattern = r"true: (\w+)\npredicted: (\w+)\nconfidence: ([\d.]+) %"
        name, called, sure = re.fullmatch(pattern, axes.get_title(loc="left")).groups()
        assert (name, called, f"{sure}%") == expected
        (drawn,) = axes.get_images()
        assert drawn.get_interpolation() == "nearest"
        np.testing.assert_array_equal(drawn.get_array(), images[index].permute(1, 2, 0))


def test_no_mistakes_are_said_in_words(tmp_path, figures):
    images, true, _, confidence = predictions(7)
    plots.mistakes(images, true, true, confidence, CLASSES, tmp_path / "figure.png", title="")
    assert words(figures[0]) == "no mistakes in 7 images"


def test_augmentation_shows_originals_with_labels_above_their_epochs(tmp_path, figures):
    originals, epochs, labels = augmented(12, 3)
    names = [f"class {k}" for k in range(12)]
    plots.augmentation(originals, epochs, names, tmp_path / "figure.png", title="")
    size = originals.shape[3]
    step = size + max(1, size // 16)
    for axes, images in zip(figures[0].axes, (originals, *epochs), strict=True):
        row = axes.get_images()[0].get_array()
        assert row.shape == (size, 10 * step - (step - size), 3)
        drawn = [row[:, index * step : index * step + size] for index in range(10)]
        expected = np.asarray(images)[:10].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(np.stack(drawn), expected)
    above = figures[0].axes[0].get_xticklabels()
    assert [text.get_text() for text in above] == names[:10]
    starts = [axes.get_ylabel() for axes in figures[0].axes]
    assert starts == ["original", "epoch 1", "epoch 2", "epoch 3"]
    heights = [axes.get_position().y0 for axes in figures[0].axes]
    assert heights == sorted(heights, reverse=True)


def test_ablation_gives_a_seed_the_same_colour_in_every_row(tmp_path, figures):
    plots.ablation({"whole": {0: 0.9, 1: 0.91}, "part": {1: 0.9}}, tmp_path / "a.png", title="")
    lines = [line for axes in figures[0].axes for line in axes.get_lines()]
    looks = [(x.get_color(), x.get_marker()) for x in lines if x.get_label() == "seed 1"]
    other = [(x.get_color(), x.get_marker()) for x in lines if x.get_label() == "seed 0"]
    assert len(looks) == 2 and len({*looks}) == 1 and looks[0] != other[0]


def test_ablation_shows_every_seed_and_the_difference_of_the_means(tmp_path, figures):
    plots.ablation(ABLATION, tmp_path / "figure.png", title="")
    far, near = figures[0].axes
    points = {}
    for axes in (far, near):
        for line in axes.get_lines():
            if line.get_label().startswith("seed"):
                ((x, y),) = line.get_xydata()
                points[round(y), line.get_label()] = round(x, 6)
    assert points == {
        (row, f"seed {seed}"): 100 * accuracy
        for row, seeds in enumerate(ABLATION.values())
        for seed, accuracy in seeds.items()
    }
    assert [text.get_text() for text in near.texts] == [
        "90.50 %  (mean)",
        "89.60 %  (\u22120.90)",
        "80.50 %  (\u221210.00)",
    ]
    assert far.get_xlim()[1] < 82 and near.get_xlim()[0] > 88  # each on its own scale
    assert far.get_yticklabels()[0].get_text() == "the complete network\n96,118 parameters"


def test_landscape_draws_bounds_as_arrows_and_ranges_as_bars(tmp_path, figures):
    kinds = {"ours": [System("net", 96_118, 0.93, 0.93)], "published": PUBLISHED}
    plots.landscape(kinds, tmp_path / "figure.png", title="", limit=100_000)
    (axes,) = figures[0].axes
    (limit,) = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert set(limit.get_xdata()) == {100_000} and "100,000 parameters" in words(figures[0])
    lines = [line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xdata())]
    assert [[96_118, 93.0]] in lines and [[40_000, 91.0]] in lines
    assert [[78_666, 86.0], [78_666, 87.0]] in lines
    arrows = [text for text in axes.texts if not text.get_text()]
    assert [arrow.xy for arrow in arrows] == [(40_000, 91.0)] * 2
    (left, level), (straight, up) = (arrow.get_position() for arrow in arrows)
    assert left < 0 == level and up > 0 == straight  # fewer parameters, more accuracy
    assert {text.get_text() for text in axes.texts} == {"", "net", *(s.name for s in PUBLISHED)}
    # No name covers the point of another system.
    for text in axes.texts:
        for system in kinds["ours"] + PUBLISHED if text.get_text() else []:
            point = axes.transData.transform((system.parameters, 100 * system.low))
            assert not text.get_window_extent().contains(*point), (text, system)


def test_scaling_draws_each_quantity_against_exact_proportion(tmp_path, figures):
    plots.scaling(SCALING, tmp_path / "figure.png", title="")
    images, batch_size, threads = figures[0].axes
    for axes, (quantity, points) in zip(figures[0].axes, SCALING.items(), strict=True):
        assert axes.get_xlabel() == quantity
        np.testing.assert_allclose(axes.get_lines()[-1].get_xydata(), points)
    ideal = images.get_lines()[0].get_ydata()
    np.testing.assert_allclose(ideal, [61 * n / 50_000 for n, _ in SCALING["images"]])
    np.testing.assert_allclose(threads.get_lines()[0].get_ydata(), [101, 50.5])
    assert len(batch_size.get_lines()) == 1
    assert images.get_ylabel() == "seconds per epoch"
    assert "2k 6k 16k 50k" in words(figures[0])


@pytest.mark.slow
def test_predictions_stand_over_their_pictures(tmp_path, figures):
    images, names, classes = pictures(50)
    plots.predictions(images, names, classes, tmp_path / "figure.png", title="")
    drawn = [axes for axes in figures[0].axes if axes.get_images()]
    assert len(drawn) == plots.MAX_PREDICTIONS
    for axes, image in zip(drawn, images, strict=False):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), image.permute(1, 2, 0))
    lines = drawn[0].get_title(loc="left").split("\n")
    assert lines == ["a_name_of\u2026tters.jpeg", "plane: 90.0 %", "car: 80.0 %", "bird: 70.0 %"]


@pytest.mark.slow
def test_explanations_draw_each_gate_against_its_mean(tmp_path, figures):
    images, captions, maps, gates = explained(3)
    plots.explanations(images, captions, maps, gates, tmp_path / "figure.png", title="")
    rows = np.array(figures[0].axes).reshape(3, 5)
    titles = [axes.get_title() for axes in rows[0]]
    assert titles == ["", "image", "Grad-CAM", "attention 1", "attention 2"]  # the last two
    for index, (beside, plain, mapped, *attentions) in enumerate(rows):
        assert beside.texts[0].get_text() == captions[index]
        for axes in (plain, mapped):
            drawn = axes.get_images()[0].get_array()
            np.testing.assert_array_equal(drawn, images[index].permute(1, 2, 0))
        np.testing.assert_allclose(mapped.get_images()[1].get_array(), maps[index])
        for axes, name in zip(attentions, titles[3:], strict=True):
            assert axes.get_ylim() == (0, 1)
            mean = gates[name].mean(axis=0)
            (line,) = axes.get_lines()
            np.testing.assert_allclose(line.get_ydata(), np.sort(mean))
            more, less = (
                {tuple(segment[:, 1]) for segment in bars.get_segments()}
                for bars in axes.collections
            )
            pairs = set(zip(mean, gates[name][index], strict=True))
            assert more == {(low, high) for low, high in pairs if high > low}
            assert less == pairs - more


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.predictions(*pictures(0), path, title=""),
        lambda path: plots.predictions(*pictures(2)[:2], [], path, title=""),
        lambda path: plots.explanations(*explained(0), path, title=""),
        lambda path: plots.explanations(*explained(2)[:2], np.ones((1, 4, 4)), {}, path, title=""),
        lambda path: plots.scaling({"images": []}, path, title=""),
        lambda path: plots.validation([], path, title=""),
        lambda path: plots.class_accuracy([1, 2], [2, 2], CLASSES, path, title=""),
        lambda path: plots.confusion_matrix(np.zeros((2, 3)), CLASSES[:2], path, title=""),
        lambda path: plots.mistakes(*predictions(4)[:3], np.ones(3), CLASSES, path, title=""),
        lambda path: plots.augmentation(*augmented(0, 1), path, title=""),
        lambda path: plots.augmentation(*augmented(2, 0), path, title=""),
        lambda path: plots.augmentation(*augmented(2, 1)[:2], CLASSES[:1], path, title=""),
        lambda path: plots.augmentation(np.zeros((1, 3, 8, 8)), [], [], path, title=""),
        lambda path: plots.ablation({}, path, title=""),
        lambda path: plots.ablation({"whole": {}}, path, title=""),
        lambda path: plots.landscape({}, path, title=""),
    ],
)
def test_input_that_does_not_fit_is_refused_in_one_line(draw, tmp_path):
    with pytest.raises(ValueError) as error:
        draw(tmp_path / "figure.png")
    assert "pass" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for folder in ("file", "missing"):
        path = tmp_path / folder / "figure.png"
        with pytest.raises(OSError) as error:
            DRAW["no mistakes"](path)
        assert error.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_text_is_taken_for_a_formula(tmp_path):
    """matplotlib would raise on this one."""
    classes = (r"$\frac$", *CLASSES[1:])
    path, count = tmp_path / "figure.png", len(classes)
    plots.class_accuracy([1] * count, [2] * count, classes, path, title=classes[0])
    plots.confusion_matrix(np.eye(count), classes, path, title=TITLE)
    images = np.zeros((1, 3, 8, 8), np.uint8)
    plots.mistakes(images, [0], [1], [0.9], classes, path, title=TITLE)
    gates = {classes[0]: np.ones((1, 4))}
    plots.explanations(images, [classes[0]], np.ones((1, 2, 2)), gates, path, title=TITLE)
    plots.predictions(images, [classes[0]], [[(classes[0], 0.9)]], path, title=TITLE)


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "figure.png")
    with pytest.raises(OSError, match="not a file"):
        DRAW["no mistakes"](tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_fifo()


def test_only_a_complete_figure_replaces_an_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    DRAW["no mistakes"](path)
    earlier = path.read_bytes()
    write_bytes = Path.write_bytes

    def full_disk(self, data):
        write_bytes(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        DRAW["one mistake"](path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]

    monkeypatch.undo()
    DRAW["one mistake"](path)
    assert path.read_bytes() != earlier
    assert list(tmp_path.iterdir()) == [path]


def test_the_users_own_style_of_matplotlib_changes_nothing(tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    DRAW["validation"](one)
    with matplotlib.style.context(["dark_background", {"font.size": 30, "text.usetex": True}]):
        DRAW["validation"](other)
    assert one.read_bytes() == other.read_bytes()


def test_drawing_needs_neither_torch_nor_pyplot():
    code = "import sys, plots; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
