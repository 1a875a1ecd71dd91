"""The registry of methods: DLFD and its peers, and those that other packages bring."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.models import WrappedClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import METHODS, Candidate, LabelledImages, Method, UnlearningProblem
from dlfd_fleet.unlearning.peers import FineTune


@pytest.fixture(autouse=True)
def fresh_registry():
    METHODS.reload()
    yield
    METHODS.reload()


@pytest.fixture
def install(install_entry):
    return partial(install_entry, "dlfd_fleet.methods")


def test_the_method_of_the_how_to_page_is_found_and_runs(install_how_to):
    install_how_to("method.md")
    found = METHODS.find("fresh-head")
    assert found.title == "Fresh head"
    assert found.default.unlearner.spread == 0.01
    assert METHODS.package_of("fresh-head") == "forget_head 1.0"
    assert found.described(found.default.unlearner)["method_settings"] == {"spread": 0.01}
    torch.manual_seed(0)
    model = WrappedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 2)), "2")
    before = model.module[3].weight.clone()
    faces = LabelledImages(torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8), torch.arange(8) % 2)
    outcome = found.default.unlearner(UnlearningProblem(model=model, retain=faces, forget=faces))
    assert outcome.cost.backward_images > 0
    assert not torch.equal(model.module[3].weight, before)


def test_a_method_that_cannot_be_loaded_is_named_with_the_reason(install):
    install("broken = broken_package:METHOD", "import no_such_module_anywhere")
    with pytest.raises(ConfigurationError, match=r"'broken' of broken_package:METHOD cannot be loaded: .*no_such_mod"):
        METHODS.find("dlfd")


def test_an_entry_point_that_is_no_method_is_refused(install):
    install("odd = odd_package:METHOD", "METHOD = 7")
    with pytest.raises(ConfigurationError, match=r"odd_package:METHOD is no dlfd_fleet\.unlearning\.methods\.Method"):
        METHODS.find("dlfd")


def test_an_entry_point_has_the_name_of_what_it_names(install):
    install(
        "mine = other_name_package:METHOD",
        "from dlfd_fleet.unlearning import Candidate, Method\n"
        "from dlfd_fleet.unlearning.peers import FineTune\n"
        "METHOD = Method('yours', 'Yours', 'none', (Candidate(FineTune()),))",
    )
    with pytest.raises(ConfigurationError, match=r"'mine' of other_name_package:METHOD is the method 'yours'; give"):
        METHODS.find("dlfd")


def test_a_name_is_given_once():
    METHODS.register(Method("mine", "Mine", "none", (Candidate(FineTune()),)))
    assert METHODS.find("mine").title == "Mine"
    for name in ("mine", "dlfd"):
        with pytest.raises(ConfigurationError, match=f"The name '{name}' is taken by another method"):
            METHODS.register(Method(name, "Other", "none", (Candidate(FineTune()),)))
    with pytest.raises(ConfigurationError, match="The method 'empty' has no candidate"):
        Method("empty", "Empty", "none", ())


def test_own_hyper_parameters_are_told_as_json_has_them_and_alike_in_every_process():
    @dataclass(frozen=True)
    class Ours:
        rates: tuple[float, ...] = (0.1, 0.2)
        weigh: object = len
        spread: object = field(default_factory=object)

        def __call__(self, problem):
            raise NotImplementedError

    told = Method("ours", "Ours", "none", (Candidate(Ours()),))
    METHODS.register(told)
    assert told.described(Ours())["method_settings"] == {
        "rates": [0.1, 0.2],
        "weigh": "<built-in function len>",
        "spread": "<object object>",
    }
    assert told.described(FineTune())["method_package"] == "registered by the running process"
    assert METHODS["dlfd"].described(METHODS["dlfd"].unlearner_at_site)["method_settings"] == {}


def test_an_equal_method_may_be_registered_again_and_another_one_is_named_shortly():
    def mine(rate):
        return Method("mine", "Mine", "none", (Candidate(FineTune(), {"learning_rate": rate}),))

    METHODS.register(mine(0.1))
    METHODS.register(mine(0.1))
    with pytest.raises(ConfigurationError) as refused:
        METHODS.register(mine(0.2))
    assert str(refused.value) == "The name 'mine' is taken by another method; give this Method another name."


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Candidate(FineTune(), {"learning_rat": 0.1}), "'learning_rat', .* unlearning.*: did you mean 'learni"),
        (lambda: Candidate(FineTune(), {"spread": 0.1}), "'spread', which is no setting .*: `dlfd-fleet config show`"),
        (lambda: Candidate(FineTune(), {"epochs": -1.0}), r"'epochs' \(unlearning\.epochs\) to -1\.0: Input should be"),
        (lambda: Candidate(FineTune(), {"epochs": "two"}), "'epochs' .* to 'two': Input should be a valid number"),
        (lambda: Candidate("fine-tune"), "unlearner is 'fine-tune', which cannot be called"),
        (lambda: Method("one", "One", "none", (Candidate(FineTune()))), "candidates of the method 'one' are no tuple"),
        (lambda: METHODS.register(7), "A method is wanted, and this int is no dlfd_fleet"),
        (
            lambda: METHODS.register(Method("../x", "X", "none", (Candidate(FineTune()),))),
            "cannot be the name of a met",
        ),
    ],
    ids=["typo", "no setting", "out of range", "no number", "no callable", "no tuple", "no method", "no name"],
)
def test_a_method_that_could_only_fail_later_is_refused_when_it_is_made_or_registered(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_an_unknown_name_is_told_with_those_there_are():
    with pytest.raises(
        ConfigurationError, match="There is no method 'dlfdd'; there are dlfd, dlfd-longer, ascent, fine-tune"
    ):
        METHODS.find("dlfdd")


def test_the_middle_candidate_is_used_where_nothing_is_tuned_and_what_somebody_set_wins():
    candidate = METHODS.find("fine-tune").default
    assert candidate.settings(UnlearningSettings()).learning_rate == 0.02
    assert candidate.settings(UnlearningSettings(learning_rate=0.5)).learning_rate == 0.5
    assert candidate.settings(UnlearningSettings(learning_rate=0.5)).epochs == 5.0
