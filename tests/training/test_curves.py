"""The curves of a run: what is drawn, and that any log can be drawn."""

import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from clip_finetuning.training import curves


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(records) -> the axes of the picture, which is written out by one test alone: that takes its time."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: (kept.append(figure), path.touch()))

    def draw(records):
        curves.draw(records, tmp_path / "curves.png")
        return kept[-1].axes

    return draw


def step(number, loss=2.0, speed=100.0, **fields):
    return {"step": number, "loss": loss, "learning_rate": 1e-3, "samples_per_second": speed, **fields}


def evaluation(number, texts, images, **fields):
    record = {"step": number, "mean_recall@10": (texts + images) / 2}
    for way, recall in (("text_to_image", texts), ("image_to_text", images)):
        name = f"recall@10/{way}"
        record |= {name: recall, f"{name}/low": recall - 0.05, f"{name}/high": recall + 0.04, f"{name}/chance": 0.02}
    return record | fields


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_both_directions_have_their_band_and_best_start_and_chance_are_marked(drawn):
    log = [evaluation(0, 0.1, 0.2), step(10), evaluation(10, 0.6, 0.5), step(20), evaluation(20, 0.4, 0.7), step(30)]
    recall = drawn([*log, evaluation(30, 0.5, 0.4)])[1]
    found = lines(recall)
    assert list(found["text→image"].get_ydata()) == [0.1, 0.6, 0.4, 0.5]
    assert list(found["image→text"].get_ydata()) == [0.2, 0.5, 0.7, 0.4]
    bands = [band.get_paths()[0].vertices[:, 1] for band in recall.collections]
    assert [(min(band), max(band)) for band in bands] == [pytest.approx((0.05, 0.64)), pytest.approx((0.15, 0.74))]
    star = found["best: mean 0.550 at step 10"]  # the first of equals, as best_checkpoint.pt
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (10, 0.55)
    assert found["before training: 0.150"].get_ydata()[0] == pytest.approx(0.15)
    assert found["chance: 0.020"].get_ydata()[0] == pytest.approx(0.02)
    assert recall.get_title("left") == "Recall@10 on the validation shards, 95 % intervals"


def retained(number, texts, images, kept, both=None):
    record = {"retention/mean_recall@10": kept, "retention/recall@10/text_to_image/chance": 0.2}
    record |= {"retention/recall@10/image_to_text/chance": 0.3} | ({} if both is None else {"mean_of_both": both})
    return evaluation(number, texts, images, **record)


def test_retention_is_a_line_of_its_own_with_its_start_and_chance(drawn):
    log = [
        evaluation(0, 0.1, 0.1),
        retained(0, 0.1, 0.2, 0.9),
        retained(10, 0.6, 0.5, 0.7),
        retained(20, 0.7, 0.8, 0.6),
    ]
    found = lines(drawn(log)[1])
    assert list(found["retention: mean of both"].get_ydata()) == [0.9, 0.7, 0.6]
    assert found["retention, before training: 0.900"].get_ydata()[0] == 0.9
    assert found["retention, chance: 0.250"].get_ydata()[0] == pytest.approx(0.25)
    assert drawn(log)[1].get_title("left") == "Recall@10 on the validation and retention shards, 95 % intervals"
    assert "best: mean 0.750 at step 20" in found and "chance: 0.020" in found
    assert not any("retention" in label for label in lines(drawn(log[:1])[1]))
    turned_on = lines(drawn([evaluation(0, 0.1, 0.1), evaluation(5, 0.1, 0.1), retained(10, 0.6, 0.5, 0.7)])[1])
    assert "retention: mean of both" in turned_on and not any("retention, before" in label for label in turned_on)


def test_the_star_is_where_the_best_checkpoint_is(drawn):
    """Of both since KEEP is both; of the validation shards alone again once it no longer is."""
    log = [
        retained(0, 0.1, 0.1, 0.9),
        evaluation(5, 0.9, 0.9),
        retained(10, 0.6, 0.6, 0.7, 0.65),
        retained(20, 0.8, 0.8, 0.2, 0.5),
    ]
    star = lines(drawn(log)[1])["best of both: mean 0.650 at step 10"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (10, 0.6)
    assert "best: mean 0.700 at step 30" in lines(drawn([*log, retained(30, 0.7, 0.7, 0.2)])[1])


def test_the_start_is_never_the_best(drawn):
    recall = drawn([evaluation(0, 0.9, 0.9), evaluation(10, 0.2, 0.2)])[1]
    assert "best: mean 0.200 at step 10" in lines(recall)


def test_the_loss_is_smoothed_over_the_raw_one_and_gaps_are_counted(drawn):
    log = [step(number, loss=None if 100 <= number < 120 else 4 + (-1) ** number) for number in range(1, 401)]
    loss = drawn(log)[0]
    raw, smooth = loss.lines
    assert raw.get_ydata()[:2].tolist() == [3.0, 5.0] and math.isnan(raw.get_ydata()[99])
    assert smooth.get_label() == "mean of 10 logged" and smooth.get_ydata()[50] == pytest.approx(4.0)
    assert math.isnan(smooth.get_ydata()[109]) and smooth.get_ydata()[-1] == pytest.approx(4.0, abs=0.3)
    assert loss.get_title("left") == "loss (20 of 400 logged are not finite)"


def test_throughput_is_its_median(drawn):
    speed = drawn([step(number, speed=speed) for number, speed in enumerate([100.0, 1.0, 90.0, 110.0, 5000.0])])[3]
    assert speed.get_title("left") == "samples per second, median 100"
    assert speed.get_ylim()[1] > 200


def test_resumes_are_marked_in_every_panel(drawn):
    log = [step(10), evaluation(10, 0.1, 0.1), step(20, resumed_from=15), step(30, resumed_from=25)]
    for axes in drawn(log):
        dotted = [line.get_xdata()[0] for line in axes.lines if list(line.get_xdata()) in ([15, 15], [25, 25])]
        assert dotted == [15, 25]


def test_one_point_is_readable(drawn):
    loss, recall, rate, speed = drawn([step(1, loss=4.5)])
    assert [text.get_text().strip() for text in loss.texts] == ["4.5000"] and loss.get_ylim() == (0, 9)
    assert [text.get_text() for text in recall.texts] == ["not measured"]
    assert all(axes.lines[0].get_marker() == "o" and axes.get_xlim()[1] > 1 for axes in (loss, rate, speed))


@pytest.mark.parametrize(
    "records",
    [
        [],
        [step(1, loss=None), step(2, loss=None)],
        [evaluation(0, 0.1, 0.1)],
        [
            {"step": 5, "mean_recall@10": 0.5, "recall@10/text_to_image": 0.5, "recall@10/image_to_text": 0.5}
        ],  # older logs
        [5, {"no": "step"}, {"step": "x"}, {"step": 3, "loss": "much", "learning_rate": True, "resumed_from": None}],
    ],
)
def test_any_log_can_be_drawn(drawn, records):
    axes = drawn(records)
    assert len(axes) == 4
    assert any(text.get_text() == "not measured" for panel in axes for text in panel.texts)


def test_the_picture_is_a_png(tmp_path):
    curves.draw([evaluation(0, 0.1, 0.1), step(1, resumed_from=0), evaluation(1, 0.3, 0.2)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
