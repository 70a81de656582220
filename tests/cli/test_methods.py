import json

import pytest
import yaml

from opd_trl.cli.main import main
from opd_trl.trainers.config.published_methods import METHODS


def test_a_recipe_takes_a_method_and_its_own_fields_win_even_at_their_defaults(parse, here):
    (here / "r.yaml").write_text("method: revisiting\nloss_top_k: 20\n")
    training = parse("--config", "r.yaml", name="opd")[1]
    assert (training.loss_support, training.loss_top_k, training.top_p) == ("teacher", 20, 0.9)


@pytest.mark.parametrize("flag", [["--loss_tail", "renormalize"], ["--loss_tail=renormalize"]])
def test_a_flag_wins_over_the_method_even_at_its_default(parse, here, flag):
    training = parse("--method", "opcd", *flag)[1]
    assert (training.loss_top_k, training.loss_tail) == (256, "renormalize")


def test_a_flag_chooses_another_method_than_the_recipe(parse, here):
    (here / "r.yaml").write_text("method: revisiting\n")
    training = parse("--config", "r.yaml", "--method", "vopd", name="opd")[1]
    assert (training.loss_support, training.loss_baseline, training.loss_top_k) == ("sampled", "full", 20)


def test_an_unknown_method_is_one_line(refused):
    assert "did you mean many_faces?" in refused("--method", "many-faces")


def test_the_list_names_every_method_with_its_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name, method in METHODS.items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert " or ".join(method.commands) in line


@pytest.mark.parametrize("name", METHODS)
def test_one_method_prints_yaml_that_sets_the_same_fields(capsys, name, here, parse):
    assert main(["methods", name]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == METHODS[name].fields
    assert METHODS[name].address in text
    (here / "r.yaml").write_text(text)
    command = METHODS[name].commands[-1]
    by_fields = parse("--config", "r.yaml", name=command)[1]
    by_method = parse("--method", name, name=command)[1]
    assert {key: getattr(by_method, key) for key in METHODS[name].fields} == {
        key: getattr(by_fields, key) for key in METHODS[name].fields
    }


def test_json_is_for_scripts_and_an_unknown_name_is_an_error(capsys):
    assert main(["methods", "sdpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sdpo"]["fields"]["loss_top_k"] == 100
    assert main(["methods", "sdpp"]) == 2
    assert "did you mean sdpo?" in capsys.readouterr().err
