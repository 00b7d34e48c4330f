"""Successive halving: how long, who goes on, what is said; and what guessing costs."""

import math

import pytest
import torch

from clip_finetuning.training import halving, losses
from clip_finetuning.training.first_loss import guessing_loss
from clip_finetuning.training.halving import BELOW_START, NO_BETTER_THAN_GUESSING, NOT_FINITE, Outcome


@pytest.mark.parametrize(
    ("rates", "total", "running", "round_steps"),
    [
        (2, 5000, [2], 200),
        (3, 5000, [3, 2], 200),
        (4, 1000, [4, 2], 100),
        (5, 1000, [5, 3, 2], 100),
        (8, 1000, [8, 4, 2], 100),
        (4, 100, [4, 2], 20),  # a tenth would be too short
        (4, 30, [4, 2], 15),  # no pilot is longer than the training
        (4, 1, [4, 2], 1),
    ],
)
def test_a_round_is_a_tenth_of_the_training_within_bounds(rates, total, running, round_steps):
    plan = halving.planned([float(number + 1) for number in range(rates)], total)
    assert (plan.running, plan.round_steps) == (running, round_steps)
    assert plan.all_steps == round_steps * sum(running)
    assert plan.pilot_steps == round_steps * len(running)


def outcomes(**changes):
    """Four pilots of rates 1 to 4, of which the third has the best score."""
    scores = {1.0: 0.3, 2.0: 0.5, 3.0: 0.6, 4.0: 0.4}
    return {rate: Outcome(20, 1.0, score, **changes) for rate, score in scores.items()}


def test_the_half_with_the_better_scores_goes_on():
    assert halving.better_half(outcomes()) == [3.0, 2.0]
    assert halving.better_half({rate: found for rate, found in outcomes().items() if rate < 4}) == [3.0, 2.0]
    assert halving.better_half({1.0: Outcome(20, 1.0, 0.3), 2.0: Outcome(20, 1.0, 0.5)}) == [2.0]


def test_of_equal_scores_the_lower_loss_goes_on_then_the_lower_rate():
    equal = {1.0: Outcome(20, 1.5, 0.3), 2.0: Outcome(20, 1.0, 0.3), 3.0: Outcome(20, 1.0, 0.3)}
    assert halving.better_half(equal) == [2.0, 3.0]


def test_without_scores_the_lower_loss_goes_on():
    assert halving.better_half({1.0: Outcome(20, 1.5), 2.0: Outcome(20, 0.9)}) == [2.0]


def test_what_is_not_finite_never_goes_on():
    found = {**outcomes(), 3.0: Outcome(12, None, trouble=NOT_FINITE)}
    assert halving.better_half(found) == [2.0, 4.0]
    assert halving.better_half(dict.fromkeys((1.0, 2.0), Outcome(12, None, trouble=NOT_FINITE))) == []


def test_what_shows_nothing_comes_behind_what_does_the_lower_rate_first_and_harm_behind_that():
    """A model that collapsed keeps a recall near chance, which may be above that of a pilot which learns."""
    chance = {"interval": [-0.1, 0.1], "trouble": NO_BETTER_THAN_GUESSING}
    found = {
        4.0: Outcome(20, 4.16, 0.9, **chance),
        3.0: Outcome(20, 4.16, 0.8, **chance),
        2.0: Outcome(20, 4.0, 0.1, interval=[-0.1, 0.1]),
        1.0: Outcome(20, 5.0, 0.2, interval=[0.1, 0.2], trouble=NO_BETTER_THAN_GUESSING),  # learns all the same
        0.5: Outcome(20, 1.0, 0.95, trouble=BELOW_START),
        0.4: Outcome(12, None, trouble=NOT_FINITE),
    }
    assert sorted(found, key=lambda rate: found[rate].rank(rate)) == [1.0, 2.0, 3.0, 4.0, 0.5, 0.4]


@pytest.mark.parametrize(
    ("loss", "interval", "expected"),
    [
        (1.0, [-0.1, 0.2], ""),
        (1.0, [-0.2, -0.1], BELOW_START),
        (9.0, [-0.2, -0.1], BELOW_START),
        (9.0, [0.1, 0.2], NO_BETTER_THAN_GUESSING),
        (math.log(128), None, NO_BETTER_THAN_GUESSING),  # what a model has that maps everything to one point
        (None, None, NOT_FINITE),
    ],
)
def test_how_a_pilot_diverged(loss, interval, expected):
    assert halving.trouble(Outcome(20, loss, interval=interval), guessing_loss(torch.arange(128), "clip")) == expected


def test_guessing_is_the_loss_of_a_model_that_tells_nothing_apart():
    batch_size = 7
    same, scale = torch.ones(batch_size, 1), torch.tensor(1.0)
    products = torch.arange(batch_size)
    assert losses.clip_loss(same, same, products, scale) == pytest.approx(
        guessing_loss(torch.arange(batch_size), "clip")
    )
    best = min(
        losses.siglip_loss(same, same, products, scale, torch.tensor(bias / 1000)).item()
        for bias in range(-3000, 0, 10)
    )
    assert best == pytest.approx(guessing_loss(torch.arange(batch_size), "siglip"), abs=1e-3)


def test_a_table_has_a_row_a_rate_in_eighty_columns():
    whole = {"gain": -0.1234, "interval": [-0.2345, -0.1234], "retention": -0.4321, "trouble": NO_BETTER_THAN_GUESSING}
    rates = [1.25e-06, 0.000125, 3.0, 1.2345e-05]
    found = {rate: Outcome(200, 12.3456, 0.5, **whole) for rate in rates}
    lines = halving.table(found, [3.0], rates)
    assert lines[0].split() == ["rate", "loss", "gain", "[95", "%]", "retention", "diverged"]
    assert [line.split()[0] for line in lines[1:]] == ["1.25e-06", "0.000125", "3", "1.2345e-05"]
    assert [line.split()[-1] for line in lines[1:]] == ["stops", "stops", "best", "stops"]
    assert max(map(len, lines)) <= 80
    assert "goes on" in halving.table(found, rates[:2], rates)[1]


def test_a_table_leaves_out_what_was_not_measured():
    lines = halving.table({1.0: Outcome(20, 1.0), 2.0: Outcome(20, None, trouble=NOT_FINITE)}, [1.0], [1.0, 2.0])
    assert lines[0].split() == ["rate", "loss", "diverged"]
    assert lines[2].split() == ["2", "-", "not", "finite", "stops"]


def test_a_best_rate_that_does_harm_is_refused():
    with pytest.raises(
        ValueError, match=r"1e-05, ends below the start \(-0.1000 \[-0.2000, -0.0500\]\).*--try-rates 1e-07"
    ):
        halving.check(1e-5, Outcome(20, 1.0, 0.1, -0.1, [-0.2, -0.05], trouble=BELOW_START), [1e-5, 1e-4])
    halving.check(1e-5, Outcome(20, 9.0, 0.1, trouble=NO_BETTER_THAN_GUESSING), [1e-5, 1e-4])


@pytest.mark.parametrize(("interval", "said"), [([-0.1, 0.3], True), ([0.1, 0.3], False), (None, False)])
def test_a_choice_within_chance_is_said(interval, said):
    found = outcomes(by_product={"products": "the same"})
    difference = lambda first, second: None if interval is None else (0.1, interval)  # noqa: E731
    remarks = halving.remarks(3.0, found, [1.0, 2.0, 3.0, 4.0], difference)
    assert any("3 is not better than 2 beyond chance (+0.1000 [-0.1000, +0.3000])" in line for line in remarks) == said


def test_a_choice_at_the_end_of_the_list_is_said():
    def of(best):
        return halving.remarks(best, {best: Outcome(20, 1.0, 0.5)}, [1.0, 2.0, 3.0], lambda *_: None)

    assert of(2.0) == []
    assert of(1.0) == ["1 is the lowest of the rates: a lower one may be better still"]
    assert of(3.0) == ["3 is the highest of the rates: a higher one may be better still"]


@pytest.mark.parametrize(
    ("rates", "dry_run", "learning_rate", "resume", "words"),
    [
        (None, True, None, "none", "add --try-rates"),
        (
            [1e-5],
            False,
            None,
            "none",
            "1e-05 leaves nothing to compare: give two rates or more, or --learning-rate 1e-05",
        ),
        ([1e-5, 1e-4, 1e-5], False, None, "none", "has 1e-05 more than once"),
        ([1e-5, 0.0], False, None, "none", "0 is no learning rate: it takes numbers > 0"),
        ([1e-5, -1e-5], False, None, "none", "-1e-05 is no learning rate"),
        ([1e-5, math.nan], False, None, "none", "nan is no learning rate"),
        ([1e-5, math.inf], False, None, "none", "inf is no learning rate"),
        ([1e-5, 1e-4], False, 1e-5, "none", "LEARNING_RATE=1e-05"),
        ([1e-5, 1e-4], True, None, "a.pt", "--resume=a.pt goes on with one"),
    ],
)
def test_what_is_wrong_with_the_rates_is_one_sentence(rates, dry_run, learning_rate, resume, words):
    (complaint,) = halving.complaints(rates, dry_run, learning_rate, resume)
    assert words in complaint


@pytest.mark.parametrize(("rates", "dry_run"), [(None, False), ([1e-5, 1e-4], True), ([3e-6, 1e-5, 1e-4], False)])
def test_nothing_is_wrong_with_good_rates(rates, dry_run):
    assert halving.complaints(rates, dry_run, None, "auto") == []
