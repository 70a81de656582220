"""Every fault of a pipeline's file is one line before anything starts."""

import sys
from pathlib import Path

import pytest
import yaml

from opd_trl.cli.pipelines.commands import find_command
from opd_trl.cli.pipelines.document import read_pipeline
from opd_trl.cli.pipelines.runner import alone


def stage(run: str = "python work.py", **keys) -> dict:
    return {"run": run, **keys}


@pytest.fixture
def read(here):
    """Write stages and read them as a pipeline."""

    def call(stages, *settings: str, **top):
        Path("p.yaml").write_text(yaml.safe_dump({"stages": stages, "output_dir": "run", **top}, sort_keys=False))
        return read_pipeline("p.yaml", list(settings))

    return call


def test_references_mean_the_outputs_and_arguments_of_earlier_stages(read):
    one, two = read(
        {
            "one": stage(args={"output": "{output_dir}/one", "rate": 0.5, "names": ["a", "b"]}),
            "two": stage(
                args={
                    "model": "{one}/model",
                    "rate": "{one.rate}",
                    "names": "{one.names}",
                    "text": "at {one.rate}",
                    "nested": {"teachers": ["{one}"]},
                }
            ),
        }
    ).stages
    assert two.args == {
        "model": "run/one/model",
        "rate": 0.5,
        "names": ["a", "b"],
        "text": "at 0.5",
        "nested": {"teachers": ["run/one"]},
    }
    assert one.outputs == ("run/one",)
    assert two.needs == ("one",)
    assert set(two.inputs) == {"work.py", "run/one/model", "run/one"}


def test_declared_outputs_are_what_a_stage_means(read):
    one, two = read(
        {
            "one": stage(args={"output": "x"}, outputs=["{output_dir}/a.txt", "{output_dir}/b.txt"]),
            "two": stage(args={"source": "{one}"}),
        }
    ).stages
    assert one.outputs == ("run/a.txt", "run/b.txt")
    assert two.args["source"] == "run/a.txt"


def test_what_a_stage_writes_is_none_of_its_inputs(read, here):
    (here / "run" / "a" / "b").mkdir(parents=True)
    (here / "run" / "a" / "b" / "c.jsonl").write_text("")
    (one,) = read({"one": stage(args={"output": "{output_dir}/a/b/c.jsonl"}, outputs="{output_dir}/a")}).stages
    assert one.inputs == ("work.py",)


def test_doubled_braces_and_braces_around_no_name_stand_as_they_are(read):
    (one,) = read({"one": stage(args={"text": r"{{question}} \boxed{} \frac{1}{2}", "json": '{"a": 1}'})}).stages
    assert one.args == {"text": r"{question} \boxed{} \frac{1}{2}", "json": '{"a": 1}'}


def test_training_and_evaluation_write_below_the_pipelines_folder_where_the_file_says_nothing(read):
    stages = read({"sft": stage("trl sft"), "eval": stage("opd-trl eval", args={"model": "{sft}"})}).stages
    assert stages[0].outputs == ("run/sft",)
    assert stages[1].args == {"output": "run/eval", "model": "run/sft"}


def test_a_recipe_beside_the_pipeline_is_meant_first_and_gives_its_keys(read, here):
    (here / "opd.yaml").write_text("extends: base.yaml\nseed: 3\n")
    (here / "base.yaml").write_text("seed: 1\noutput_dir: runs/elsewhere\nmax_steps: 5\n")
    (one,) = read({"one": stage("opd-trl opd", config="opd.yaml", args={"max_steps": 7})}).stages
    assert one.values == {"seed": 3, "output_dir": "run/one", "max_steps": 7}
    assert one.config == {"seed": 3}


def test_tables_of_a_training_stage_are_read_from_its_file_and_name_its_inputs(read):
    table = [{"path": "json", "data_files": "{one}/sft.jsonl"}]
    _, two = read(
        {
            "one": stage(args={"output": "{output_dir}/one"}),
            "two": stage("trl sft", args={"datasets": table, "seed": 1}),
        }
    ).stages
    assert two.config == {"datasets": [{"path": "json", "data_files": "run/one/sft.jsonl"}]}
    assert two.flags == {"output_dir": "run/two", "seed": 1}
    assert "run/one/sft.jsonl" in two.inputs


def test_a_pipeline_extends_another(read, here):
    read({"one": stage()})
    (here / "q.yaml").write_text("extends: p.yaml\noutput_dir: other\n")
    assert read_pipeline("q.yaml", []).folder == Path("other")


def test_commands_are_run_with_the_python_that_runs_the_pipeline(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_command("trl sft", Path()).argv == (sys.executable, "-m", "trl.cli.main", "sft")
    command = find_command("opd-trl data filter", Path())
    assert command.argv == (sys.executable, "-m", "opd_trl.cli.main", "data", "filter")
    assert not command.goes_on
    assert find_command("opd-trl data traces", Path()).goes_on
    assert find_command("opd-trl opd", Path()).training


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (None, "p.yaml has no stages"),
        ({}, "p.yaml has no stages"),
        ({"a": "trl sft"}, "stage a of p.yaml must be a mapping with `run`"),
        ({"a": {"args": {}}}, "stage a of p.yaml must be a mapping with `run`"),
        ({"a b": stage()}, "stage a b of p.yaml: a name is letters"),
        ({"output_dir": stage()}, "stage output_dir of p.yaml: a name is"),
        ({"a": stage(arguments={})}, "unknown key in stage a of p.yaml. arguments: did you mean args?"),
        ({"a": stage(args=["x"])}, "stage a of p.yaml: args must map names to values"),
        ({"a": stage(outputs=3)}, "stage a of p.yaml: outputs must be a list of texts"),
        ({"a": stage(config=3)}, "stage a of p.yaml: config must be a recipe's name or path"),
        ({"a": stage("trl sfft")}, "run: trl sfft is not a command of a stage: did you mean trl sft?"),
        ({"a": stage("opd-trl pipeline")}, "is not a command of a stage"),
        ({"a": stage("bash x.sh")}, "is not a command of a stage"),
        ({"a": stage("python no.py")}, "run: python no.py: no file no.py"),
        ({"a": stage(args={"x": "{b}"}), "b": stage()}, "{b} in '{b}': stage b comes later or is this one"),
        ({"a": stage(args={"x": "{c.y}"})}, "there is no stage c. The stages before this one are none"),
        ({"a": stage(), "b": stage(args={"x": "{a}"})}, "stage a has no outputs. List them under `outputs`"),
        ({"a": stage(args={"k": 1}), "b": stage(args={"x": "{a.y}"})}, "stage a sets no y. It sets k"),
        ({"a": stage(needs=["b"]), "b": stage()}, "needs b: stage b comes later"),
        ({"a": stage(config="x.yaml")}, "`python work.py` takes no config"),
        ({"a": stage("trl sft", config="no_such")}, "'no_such' is neither a file"),
        ({"a": stage("trl sft", args={"dataset_name": "no.jsonl"})}, "dataset_name: no.jsonl does not exist"),
        ({"a": stage(outputs=["."])}, "holds or lies in"),
        ({"a": stage(outputs=["run"])}, "holds or lies in the pipeline's own folder"),
        ({"a": stage(outputs=["x"]), "b": stage(outputs=["x/y"])}, "holds or lies in stage a"),
        ({"a": stage(outputs=["x/y"]), "b": stage(outputs=["x"])}, "holds or lies in stage a"),
    ],
)
def test_a_fault_names_the_stage_and_what_to_do(stages, message, read):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(stages)
    assert message in str(error.value)


def test_an_unknown_key_beside_stages_is_refused(read):
    with pytest.raises(ValueError, match="outputdir: did you mean output_dir"):
        read({"a": stage()}, outputdir="x")


@pytest.mark.parametrize("setting", ["a", "a.x", "b.x=1", "x=1", "a.=1", "a.x=[1"])
def test_a_setting_that_sets_nothing_is_refused(setting, read):
    with pytest.raises(ValueError, match="--set"):
        read({"a": stage()}, setting)


def test_settings_are_read_as_yaml_and_come_before_references(read):
    one, two = read(
        {"one": stage(args={"k": 1}), "two": stage(args={"k": "{one.k}"})}, "one.k=[2, x]", "two.flag=true"
    ).stages
    assert one.args["k"] == two.args["k"] == [2, "x"]
    assert two.args["flag"] is True


def test_flags_that_name_no_stage_are_refused(write_pipeline, run):
    write_pipeline()
    assert "--from four: p.yaml has no such stage. It has one, two, three." in run("--from", "four")[1]
    assert "--until one comes before --from two" in run("--from", "two", "--until", "one")[1]


def test_a_fault_of_the_last_stage_stops_the_first(write_pipeline, run):
    write_pipeline({"three": {"source": "{four}"}})
    status, text = run()
    assert status == 2
    assert "stage three of p.yaml: {four}" in text
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("run", "args", "is_alone"),
    [
        ("trl sft", {"use_cpu": True}, True),
        ("trl sft", {"use_cpu": True, "num_processes": 1}, True),
        ("trl sft", {"use_cpu": True, "num_processes": 2}, False),
        ("trl sft", {"use_cpu": True, "accelerate_config": "zero2"}, False),
        ("trl sft", {"use_cpu": True, "config_file": "mine.yaml"}, False),
        ("trl sft", {}, False),
        ("opd-trl toy", {}, False),
    ],
)
def test_a_training_alone_on_a_cpu_is_known(run, args, is_alone, read):
    assert alone(read({"one": stage(run, args=args)}).stages[0]) is is_alone
