import json
from pathlib import Path

import pytest
import trl.rewards

from opd_trl.data import toy_calculator
from opd_trl.scripts import common, opd, opsd
from tests import tiny


class FakeTrainer:
    """Records what a script gives to the trainer and does with it."""

    last = None

    def __init__(self, **kwargs):
        FakeTrainer.last = self
        self.kwargs, self.calls = kwargs, []
        self.args, self.callbacks = kwargs["args"], []
        self.accelerator = self.callback_handler = self

    def print(self, *args):
        pass

    def train(self, resume_from_checkpoint=None):
        self.calls.append(("train", resume_from_checkpoint))

    def save_model(self, output_dir):
        Path(output_dir).mkdir(parents=True)
        Path(output_dir, "model.safetensors").touch()
        self.calls.append(("save_model",))

    def pop_callback(self, callback):
        return None

    def create_model_card(self, dataset_name=None):
        self.calls.append(("card", dataset_name))

    def wait_for_everyone(self):
        pass

    def end_training(self):
        self.calls.append(("end",))


@pytest.fixture
def arguments(make_parser, write_rows):
    """The four dataclasses of a script from flags, on a small local data set."""
    write_rows("data/train.jsonl", 4)
    write_rows("data/test.jsonl", 2)

    def parse(*argv, name="opsd"):
        required = ["--model_name_or_path", "m", "--dataset_name", "data", "--output_dir", "out", "--use_cpu"]
        return make_parser(name).parse_args_and_config([*required, *argv])

    return parse


@pytest.fixture
def train(arguments, monkeypatch):
    """Run a script with FakeTrainer; return it."""

    def run(*argv, name="opsd"):
        parsed = arguments(*argv, name=name)
        monkeypatch.setattr(f"opd_trl.{name.upper()}Trainer", FakeTrainer, raising=False)
        {"opd": opd, "opsd": opsd}[name].main(*parsed)
        return FakeTrainer.last

    return run


def save_checkpoint(folder: str, *, whole: bool = True) -> None:
    Path(folder).mkdir(parents=True)
    if whole:
        (Path(folder) / "trainer_state.json").write_text("{}")


def test_a_run_trains_saves_and_ends(train):
    save_checkpoint("ckpt")
    trainer = train("--eval_strategy", "steps", "--eval_steps", "1", "--resume_from_checkpoint", "ckpt")
    assert trainer.calls == [("train", "ckpt"), ("save_model",), ("card", "data"), ("end",)]
    assert Path("out/model.safetensors").is_file()
    assert trainer.kwargs["model"] == "m"
    assert (len(trainer.kwargs["train_dataset"]), len(trainer.kwargs["eval_dataset"])) == (4, 2)
    assert trainer.kwargs["reward_funcs"] is None
    assert trainer.kwargs["peft_config"] is None


def test_tools_and_an_environment_reach_the_trainer_by_their_import_paths(train):
    where = "opd_trl.data.toy_calculator"
    trainer = train("--tools", f"{where}.manual", "--environment_factory", f"{where}:Calculator")
    assert trainer.kwargs["tools"] == [toy_calculator.manual]
    assert trainer.kwargs["environment_factory"] is toy_calculator.Calculator
    assert not {"tools", "environment_factory"} & train().kwargs.keys()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tools", "os.getcwd", "no.where"), "tools: 'no.where' cannot be imported as package.module.name"),
        (("--environment_factory", "Game"), "environment_factory: 'Game' cannot be imported"),
        (
            ("--environment_factory", "os.sep"),
            "environment_factory: 'os.sep' is a str, expected a function or a class",
        ),
    ],
)
def test_what_cannot_be_called_is_an_error_before_anything_is_loaded(arguments, flags, message):
    with pytest.raises(ValueError, match=message):
        opsd.check_arguments(*arguments("--privileged_context", "x", *flags))


@pytest.mark.parametrize("given", [True, False])
def test_true_and_false_reach_the_trainer_which_looks_for_the_newest_whole_checkpoint(train, given):
    save_checkpoint("out/checkpoint-2")
    assert train("--resume_from_checkpoint", str(given).lower()).calls[0] == ("train", given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("true", "out has no whole checkpoint"),
        ("out/checkpoint-7", "there is no such folder"),
        ("broken", "trainer_state.json is missing"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_from_is_an_error_before_anything_is_loaded(arguments, given, message):
    save_checkpoint("broken", whole=False)
    with pytest.raises(ValueError, match=message):
        opsd.check_arguments(*arguments("--privileged_context", "x", "--resume_from_checkpoint", given))


def test_without_evaluation_no_test_split_is_given(train):
    assert train().kwargs["eval_dataset"] is None


def test_lora_and_init_arguments_reach_the_trainer(train):
    trainer = train(
        *("--use_peft", "--lora_r", "3", "--lora_target_modules", "q_proj", "v_proj", "--dtype", "bfloat16"),
        *("--model_revision", "r1", "--attn_implementation", "sdpa", "--model_init_kwargs", '{"dtype": "float16"}'),
    )
    assert trainer.kwargs["peft_config"].r == 3
    assert trainer.kwargs["peft_config"].target_modules == {"q_proj", "v_proj"}
    given = trainer.kwargs["args"].model_init_kwargs
    assert given["dtype"] == "float16"  # given by hand, so it wins over --dtype
    assert (given["revision"], given["attn_implementation"]) == ("r1", "sdpa")


def test_the_teacher_takes_the_students_attention_but_its_own_settings_win(train):
    teacher = ["--teacher_model_name_or_path", "t", "--attn_implementation", "sdpa"]
    args = train(*teacher, name="opd").kwargs["args"]
    assert args.teacher_model_init_kwargs == {"attn_implementation": "sdpa"}
    own = ["--teacher_model_init_kwargs", '{"attn_implementation": "eager"}']
    args = train(*teacher, *own, name="opd").kwargs["args"]
    assert args.teacher_model_init_kwargs == {"attn_implementation": "eager"}


def test_rewards_come_by_name_and_by_import_path(train, here, monkeypatch):
    (here / "my_rewards_of_test.py").write_text("def length(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(here)
    names = ("think_format_reward", "get_soft_overlong_punishment", "my_rewards_of_test.length")
    rewards = train("--reward_funcs", *names).kwargs["reward_funcs"]
    assert rewards[0] is trl.rewards.think_format_reward
    assert callable(rewards[1])
    assert rewards[2](["x"]) == [1.0]


@pytest.mark.parametrize("name", ["accuracy_rewardd", "no.such.module", "os.path.nothing"])
def test_an_unknown_reward_is_a_clear_error(name):
    with pytest.raises(ValueError, match=rf"reward_funcs: '{name}' is none of accuracy_reward"):
        common.reward_func(name)


@pytest.mark.parametrize("field", ["model_name_or_path", "teacher_model_name_or_path"])
def test_a_local_model_that_does_not_exist_is_named_before_anything_starts(arguments, field):
    parsed = arguments(f"--{field}", "runs/demo/model", name="opd")
    with pytest.raises(ValueError, match=f"{field}='runs/demo/model' does not exist.*A recipe's header"):
        opd.check_arguments(*parsed)


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_loaded(arguments, name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf'report_to: {name} is not installed. Run pip install "opd_trl\[{name}\]"'):
        opsd.check_arguments(*arguments("--report_to", name, "--privileged_context", "x"))


def test_opd_needs_a_teacher(arguments):
    with pytest.raises(ValueError, match=r"no teacher is given\. Set teacher_model_name_or_path"):
        opd.main(*arguments(name="opd"))


def test_a_script_ends_with_one_line_on_faulty_data(make_parser, here, monkeypatch, capsys):
    (here / "rows.csv").write_text("prompt\n")
    argv = ["opsd.py", "--model_name_or_path", "m", "--dataset_name", "rows.csv", "--use_cpu", "--output_dir", "out"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as exit_:
        common.run(make_parser(), opsd.check_arguments, opsd.main)
    assert exit_.value.code == 2
    assert "at least one row" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_script_ends_with_one_line_on_rows_that_cannot_be_trained_on(
    make_parser, here, monkeypatch, capsys, student_path
):
    rows = [{"prompt": "1+1?"}] * 3
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["opd.py", "--model_name_or_path", student_path, "--teacher_model_name_or_path", student_path, "--use_cpu"]
    argv += ["--dataset_name", "rows.jsonl", "--output_dir", "out", "--max_steps", "5", "--report_to", "none"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as exit_:
        common.run(make_parser("opd"), opd.check_arguments, opd.main)
    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: the train set has too few rows, 3: one batch takes 8" in last
    assert not (here / "out").exists()


def test_a_script_ends_with_one_line_on_a_teacher_that_does_not_fit(
    make_parser, here, write_rows, monkeypatch, capsys, student_path, tmp_path_factory
):
    other = tiny.save(tmp_path_factory.mktemp("other"), tokenizer=tiny.build_tokenizer(reverse=True))
    write_rows("rows.jsonl", 8)
    argv = ["opd.py", "--model_name_or_path", student_path, "--teacher_model_name_or_path", other, "--use_cpu"]
    monkeypatch.setattr(
        "sys.argv", [*argv, "--dataset_name", "rows.jsonl", "--output_dir", "out", "--report_to", "none"]
    )
    with pytest.raises(SystemExit) as exit_:
        common.run(make_parser("opd"), opd.check_arguments, opd.main)
    assert exit_.value.code == 2
    assert "error: student and teacher have different vocabularies" in capsys.readouterr().err.splitlines()[-1]
    assert not (here / "out").exists()


def test_the_scripts_have_the_shape_of_those_of_trl():
    from trl.scripts import distillation

    for script in (opd, opsd):
        assert script.make_parser.__code__.co_varnames[:2] == distillation.make_parser.__code__.co_varnames[:2]
        assert script.main.__code__.co_varnames[:4] == distillation.main.__code__.co_varnames[:4]
