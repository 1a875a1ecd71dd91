"""What a model says of changed copies of an image, as the aim of unlearning it."""

import math

import pytest
import torch
from torch import nn

from dlfd_fleet.settings import AugmentationSettings, UnlearningSettings
from dlfd_fleet.unlearning import LabelledImages, UnlearningProblem
from dlfd_fleet.unlearning.own_answers import OwnAnswers, answers_to_copies, images_answered, strongest_change
from dlfd_fleet.unlearning.session import Session

SIZE = 16


class Rule(nn.Module):
    """A model that answers an image by a rule, with its logits as features."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.scale = rule, nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.rule(images) * self.scale

    def features_and_logits(self, images):
        return self(images), self(images)


def by_side(images):
    """Tell by which half is brighter: a mirrored image has the other answer."""
    left, right = images[..., : SIZE // 2].mean((1, 2, 3)), images[..., SIZE // 2 :].mean((1, 2, 3))
    return torch.stack([20.0 * (left - right), 20.0 * (right - left)], dim=1)


def by_contrast(images):
    """Tell by how much an image varies: mirrored and shifted images have the same answer, lit ones hardly another."""
    spread = images.std((1, 2, 3))
    return torch.stack([60.0 * (0.18 - spread), 60.0 * (spread - 0.18)], dim=1)


def halves(count, seed=0):
    """Images whose left or right half is bright, four of a person; half of the people are of each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) // 4 % 2
    images = 0.2 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[..., SIZE // 2 * int(label) : SIZE // 2 * (int(label) + 1)] += 0.6
    return LabelledImages(images, labels, torch.arange(count) // 4)


def contrasts(count, seed=0):
    """Images of noise, strong or weak."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) // 4 % 2
    noise = torch.rand(count, 3, SIZE, SIZE, generator=generator) - 0.5
    images = 0.5 + noise * torch.where(labels == 1, 1.0, 0.4)[:, None, None, None]
    return LabelledImages(images, labels, torch.arange(count) // 4)


def test_a_change_that_gives_another_answer_is_not_used():
    change = strongest_change(Rule(by_side).eval(), halves(32), seed=0)
    assert change is None or change.flip == 0.0


def test_of_two_people_one_that_bears_a_change_does_not_outweigh_the_other():
    """A mirrored image of the second person is another answer, and one of the first is not."""
    unseen = halves(8)
    unseen.images[:4] = 0.5
    unseen.images[:4, :, :, :2] = unseen.images[:4, :, :, -2:] = 0.9
    unseen.images[:4, 0, :, : SIZE // 2] += 0.05
    change = strongest_change(Rule(by_side).eval(), unseen, seed=0)
    assert change is None or change.flip == 0.0


def test_the_strongest_change_that_unseen_people_bear_is_used():
    change = strongest_change(Rule(by_contrast).eval(), contrasts(32), seed=0)
    assert change is not None
    assert change.flip == 0.5
    assert change.shift == SIZE // 8


def test_as_many_images_are_answered_as_an_erasure_is_priced_by():
    """Of 32 unseen images, 8 copies under the one change that is tried; of these and 8 others, and 8 copies of each.

    Of 200 retained images, 8 copies of 128.
    """
    answered = []

    def counting(images):
        answered.append(len(images))
        return by_contrast(images)

    assert (
        OwnAnswers.of(
            Rule(counting).eval(), contrasts(8), contrasts(32), contrasts(200), seed=0, trained_on_copies=True
        )
        is not None
    )
    assert sum(answered) == images_answered(8, 32, 200, tried=1) == (32 + 8 * 32) + 40 + 8 * (40 + 128)


def tinted(count, seed):
    """Images with a tint, which mirrored, shifted and lit copies keep."""
    images = contrasts(count, seed)
    images.images[:, 0] += 0.1
    return images


def margins(logits):
    return (logits[:, 0] - logits[:, 1]).abs().mean()


def remembering(images):
    """Be surer of whatever has the tint, as a model is of people whom it was trained on, changed or not."""
    tint = images[:, 0].mean((1, 2)) > images[:, 1].mean((1, 2)) + 0.05
    return by_contrast(images) * torch.where(tint, 1.6, 1.0)[:, None]


@pytest.mark.parametrize(("copies", "most"), [(True, 1.0), (False, 1.2)])
def test_where_copies_keep_what_is_remembered_targets_are_no_surer_than_answers_to_strangers(copies, most):
    """Or by a standard error, a fifteenth of it here, where training is not known to have changed images."""
    model, unseen = Rule(remembering).eval(), contrasts(64, seed=1)
    answers = OwnAnswers.of(model, tinted(64, seed=2), unseen, tinted(64, seed=3), seed=0, trained_on_copies=copies)
    assert margins(answers.forget) > 1.4 * margins(answers.unseen)
    assert margins(answers.changed) < (most + 0.1) * margins(answers.unseen)


def test_few_strangers_do_not_tell_how_sure_targets_may_be():
    """Of one person nobody knows how far another one would be from her."""
    model, forget, retain = Rule(remembering).eval(), tinted(64, seed=2), tinted(64, seed=3)
    answers = OwnAnswers.of(model, forget, contrasts(4, seed=1), retain, seed=0, trained_on_copies=False)
    assert margins(answers.changed) > 1.4 * margins(answers.unseen)


def test_where_copies_keep_nothing_of_it_they_are_targets_as_they_are():
    model, unseen = Rule(by_contrast).eval(), contrasts(64, seed=1)
    answers = OwnAnswers.of(model, contrasts(64, seed=2), unseen, contrasts(64, seed=3), seed=0, trained_on_copies=True)
    change = strongest_change(model, unseen, seed=0)
    ratio = answers_to_copies(model, contrasts(64, seed=2), change, seed=0) / answers.changed
    of_unseen = answers_to_copies(model, unseen, change, seed=0)
    assert margins(of_unseen / ratio[0, 0]) == pytest.approx(float(margins(answers.unseen)), rel=0.1)


def test_where_no_change_is_borne_there_is_nothing_to_aim_at():
    unseen = contrasts(40)

    def by_heart(images):
        """Be right about exactly these images, and wrong about any other."""
        same = (images.flatten(1)[:, None] == unseen.images.flatten(1)[None]).all(dim=2)
        sign = torch.where(same.any(dim=1), 1.0, -1.0) * by_contrast(images)[:, 1].sign()
        return torch.stack([-10.0 * sign, 10.0 * sign], dim=1)

    model = Rule(by_heart).eval()
    assert strongest_change(model, unseen, seed=0) is None
    assert OwnAnswers.of(model, unseen, unseen, unseen, seed=0, trained_on_copies=False) is None


def test_answers_to_copies_are_the_mean_logits_of_random_changes():
    images, model = contrasts(8), Rule(by_contrast)
    model.train()
    nothing = answers_to_copies(model, images, AugmentationSettings(), seed=3)
    assert torch.allclose(nothing, by_contrast(images.images), atol=1e-5)
    shifted = answers_to_copies(model, images, AugmentationSettings(shift=2), seed=3)
    assert torch.equal(shifted, answers_to_copies(model, images, AugmentationSettings(shift=2), seed=3))
    assert not torch.equal(shifted, answers_to_copies(model, images, AugmentationSettings(shift=2), seed=4))
    assert model.training  # as it was


def own(forget, changed, unseen):
    return OwnAnswers(*(torch.tensor([[0.0, each] for each in part]) for part in (forget, changed, unseen)))


def two(brightness):
    """Two images of the second class, of two people."""
    return LabelledImages(torch.full((2, 3, SIZE, SIZE), brightness), torch.ones(2, dtype=torch.int64))


ASKED, UNSEEN = two(0.0), two(1.0)


def says(asked, unseen):
    """A model that gives the people to forget one margin, and people never trained on another."""

    def rule(images):
        bright = images.mean((1, 2, 3)) > 0.5
        margin = torch.where(bright, torch.tensor(float(unseen)), torch.tensor(float(asked)))
        return torch.stack([torch.zeros(len(images)), margin], dim=1)

    return Rule(rule).eval()


@pytest.mark.parametrize(("margin", "share"), [(6.0, 1.0), (4.0, 0.5), (2.0, 0.0), (1.0, -0.25)])
def test_what_is_left_is_the_share_of_the_way_to_the_targets(margin, share):
    answers = own([6.0, 6.0], [2.0, 2.0], [1.0, 1.0])
    assert answers.left(says(margin, 1.0), ASKED, UNSEEN).share == pytest.approx(share, abs=1e-5)


def test_what_a_model_became_less_sure_of_everybody_is_no_forgetting():
    answers = own([6.0, 6.0], [2.0, 2.0], [1.0, 1.0])
    assert answers.left(says(5.0, 0.0), ASKED, UNSEEN).share == pytest.approx(1.0, abs=1e-5)


def test_what_a_model_became_surer_of_everybody_is_no_forgetting_either():
    """Nothing was forgotten, and it is surer of strangers: all is left."""
    answers = own([6.0, 6.0], [2.0, 2.0], [1.0, 1.0])
    assert answers.left(says(6.0, 3.0), ASKED, UNSEEN).share == pytest.approx(1.0, abs=1e-5)


def test_of_less_than_a_logit_the_share_is_of_a_logit():
    """A tenth of a logit above a target that was a twentieth away is a tenth, and not twice what there was."""
    answers = own([2.05, 2.05], [2.0, 2.0], [1.0, 1.0])
    assert answers.left(says(2.1, 1.0), ASKED, UNSEEN).share == pytest.approx(0.1, abs=1e-5)


def test_its_error_is_that_of_the_mean_over_images():
    """Both people are 4 logits from a target each; the model has moved one of them to it, and left the other."""
    answers = own([6.0, 2.0], [2.0, -2.0], [1.0, 1.0])
    left = answers.left(says(2.0, 1.0), ASKED, UNSEEN)
    assert left.share == pytest.approx(0.5, abs=1e-5)
    assert left.error == pytest.approx(2.0 / 4.0, abs=1e-5)  # of 0 and 4: their spread over the root of two is 2


def test_images_without_an_answer_count_for_nothing():
    answers = own([6.0, 6.0], [2.0, 2.0], [1.0, 1.0])
    answers.forget[1] = math.nan
    answers.changed[1] = math.nan
    assert answers.left(says(4.0, 1.0), ASKED, UNSEEN).share == pytest.approx(0.5, abs=1e-5)
    assert answers.targets()[1].isnan().all()


def test_unlearning_moves_answers_to_their_targets_and_not_past_them():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images)

        def features_and_logits(self, images):
            return images.flatten(1), self.network(images)

        def freeze(self):
            """Nothing is frozen."""

    model, retain, forget = Linear(), halves(64), halves(16, seed=5)
    targets = torch.tensor([[0.7, 0.3]]).repeat(16, 1)
    problem = UnlearningProblem(
        model=model,
        retain=retain,
        forget=forget,
        settings=UnlearningSettings(epochs=60.0, batch_size=16, learning_rate=0.02),
        targets=targets,
    )
    session = Session(problem)
    assert session.has_targets
    session.fine_tune(session.optimizer())
    said = model(forget.images).softmax(dim=1).detach()
    assert torch.allclose(said.mean(dim=0), targets[0], atol=0.15)


def test_targets_of_other_images_are_refused():
    model = Rule(by_contrast)
    model.freeze = lambda: None
    problem = UnlearningProblem(model=model, retain=contrasts(8), forget=contrasts(8), targets=torch.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="3 targets for 8 forget images"):
        Session(problem)
