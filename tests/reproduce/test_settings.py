"""Settings: the study's own file holds together, and what is wrong in another one is named."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from opd_trl.reproduce.arms import arguments
from opd_trl.reproduce.settings import SettingsError, at_rate, read_settings
from opd_trl.scripts.recipe_files import find_recipe


OWN = find_recipe("reproduce/mechanisms")


# `mechanisms` and `teachers` run each arm of the file once.
STUDIES = (None, "teachers")
ARMS = {name: section for section in STUDIES for name in read_settings(OWN, section=section).arms}


@pytest.fixture(scope="module")
def settings():
    return read_settings(OWN)


def test_each_arm_of_the_file_is_of_one_study_and_speaks_to_a_claim_of_it():
    content = yaml.safe_load(OWN.read_text())
    studies = [read_settings(OWN, section=section) for section in STUDIES]
    assert sorted(name for study in studies for name in study.arms) == sorted(content["arms"])
    assert sorted(name for study in studies for name in study.claims) == sorted(content["claims"])
    for study in studies:
        assert {name for claim in study.claims.values() for name in claim.arms} == set(study.arms)
        assert {name for claim in study.claims.values() for name in claim.compared} <= set(study.arms)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_is_a_configuration_that_the_trainers_take(name, tmp_path):
    settings = read_settings(OWN, section=ARMS[name])
    args = arguments(settings.arms[name], settings, seed=0, folder=tmp_path)
    own = settings.arms[name].fields
    assert {field: getattr(args, field) for field in own} == own


def test_arms_differ_from_the_shared_settings_in_the_loss_alone():
    arms = [read_settings(OWN, section=section).arms[name] for name, section in ARMS.items()]
    changed = {field for arm in arms for field in arm.fields or {}}
    loss = {"loss_top_k", "loss_tail", "stop_gradient", "loss_support", "divergence"}
    # A pick is one token long.
    assert changed == loss | {"max_completion_length"}
    assert {arm.prompts for arm in arms if "max_completion_length" in arm.fields} == {"pick"}


def test_quick_runs_fewer_arms_and_steps(settings):
    quick = read_settings(OWN, section="quick")
    assert set(quick.arms) < set(ARMS)
    assert quick.training["max_steps"] < settings.training["max_steps"]
    assert quick.rates is None
    assert quick.training["learning_rate"] in settings.rates["values"]
    assert {name for claim in quick.claims.values() for name in claim.arms} == set(quick.arms)


def test_a_digest_changes_with_what_decides_a_result_and_not_with_a_label(settings):
    arm = settings.arms["full"]
    labelled = dataclasses.replace(settings, arms=settings.arms | {"full": dataclasses.replace(arm, label="x")})
    assert labelled.arm_digest(labelled.arms["full"]) == settings.arm_digest(settings.arms["full"])
    longer = dataclasses.replace(settings, training=settings.training | {"max_steps": 81})
    assert longer.arm_digest(settings.arms["full"]) != settings.arm_digest(settings.arms["full"])
    assert settings.arm_digest(settings.arms["full"]) != settings.arm_digest(settings.arms["sampled"])


def test_another_rate_is_a_study_of_its_own(settings):
    slow = at_rate(settings, 1e-3)
    assert slow.training == settings.training | {"learning_rate": 1e-3}
    assert slow.arm_digest(settings.arms["full"]) != settings.arm_digest(settings.arms["full"])
    assert slow.models == settings.models
    with pytest.raises(SettingsError, match=r"--rate must be > 0, got -1\.0"):
        at_rate(settings, -1.0)


def test_claims_and_arms_are_chosen_by_name(settings):
    assert settings.chosen([]) == list(settings.arms)
    assert settings.chosen(["biased_topk"]) == list(settings.claims["biased_topk"].arms)
    assert settings.chosen(["full", "controls"]) == ["full", "sft"]
    with pytest.raises(SettingsError, match=r"--only biased: no such claim or arm\. Claims: biased_topk, .*Arms: "):
        settings.chosen(["biased"])


def broken(tmp_path: Path, change) -> Path:
    content = yaml.safe_load(OWN.read_text())
    change(content)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_section_that_a_file_lacks_is_named(tmp_path):
    path = broken(tmp_path, lambda x: x["sections"].pop("quick"))
    with pytest.raises(
        SettingsError, match=r"own\.yaml has no section 'quick'\. Its sections: larger, sorting, teachers\."
    ):
        read_settings(path, section="quick")
    path = broken(tmp_path, lambda x: x.pop("sections"))
    with pytest.raises(SettingsError, match=r"has no section 'sorting'\. Its sections: none\."):
        read_settings(path, section="sorting")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x["arms"]["full"].update(student="weakest"),
            r"arm full: student is 'weakest', expected one of own",
        ),
        (lambda x: x["arms"]["full"].update(outcome="speed"), r"outcome is 'speed', expected one of accuracy"),
        (lambda x: x["claims"]["controls"]["arms"].append("fuller"), r"claim controls: there is no arm 'fuller'"),
        (lambda x: x["arms"]["full"].update(fieldz={}), r"unexpected keyword argument 'fieldz'"),
        (lambda x: x.update(trainin={}), r"unexpected keyword argument 'trainin'"),
        (lambda x: x["arms"]["full"].pop("teacher"), r"missing 1 required positional argument: 'teacher'"),
        (lambda x: x.pop("claims"), r"'claims'"),
        (lambda x: x["rates"].pop("seeds"), r"own\.yaml: rates lacks 'seeds'; it has values, seeds\."),
        (lambda x: x["trial"].pop("steps"), r"own\.yaml: trial lacks 'steps'; it has steps, prompts\."),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(broken(tmp_path, change))
