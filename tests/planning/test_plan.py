import re
import shlex
from pathlib import Path

import pytest
import yaml
from transformers import MambaConfig, Qwen3Config

from opd_trl.cli.main import main
from opd_trl.cli.plan import OWN_FLAGS
from opd_trl.planning import inputs
from opd_trl.scripts.recipe_files import find_recipe, recipe_names
from tests.planning.sized import component


OPD, OPSD, DEMO = "math/opd_qwen3_1.7b_from_8b", "system_prompt/opsd_qwen3_1.7b", "system_prompt/demo"


@pytest.mark.parametrize("argv", [[], ["-h"], ["--config", "x", "--help"]])
def test_help_names_every_flag_of_its_own(argv, capsys):
    assert main(["plan", *argv]) == 0
    text = capsys.readouterr().out
    assert all(f"  --{name.replace('_', '-')} " in text and "help" in options for name, options in OWN_FLAGS.items())
    assert "--config RECIPE" in text


@pytest.mark.parametrize("config", recipe_names())
def test_every_recipe_can_be_planned_from_the_config_of_its_models(config, plan):
    figures = plan(config=config)
    assert figures["total"] > 0
    assert figures["verdict"] == "fits"


def test_the_table_shows_the_figures_and_its_rows_add_up_to_the_total(plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    figures = plan("--accelerate_config", "zero3", "--max_completion_length", "100000")
    rows = dict(re.findall(r"^(\w.*?) {2,}\(?([\d.,]+)\)?  ", plan.text, re.MULTILINE))
    assert {part["name"]: f"{part['bytes'] / 2**30:,.2f}" for part in figures["components"]}.items() <= rows.items()
    at_peak = [part["bytes"] for part in figures["components"] if part["at_peak"]]
    assert sum(at_peak) == pytest.approx(figures["total"])
    assert figures["total"] < sum(part["bytes"] for part in figures["components"])
    assert f"Fits: {figures['total'] / 2**30:.2f} of 80.00 GiB at the peak of a step ({figures['peak']})" in plan.text
    assert "an estimate, not a measurement" in plan.text
    assert figures["not_counted"] in plan.text


def test_the_output_in_the_documentation_is_what_its_command_prints(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    common = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "dtype": "bfloat16"}
    for name, hidden, layers, heads in (("qwen3-1.7b", 2048, 28, 16), ("qwen3-8b", 4096, 36, 32)):
        sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
        config = Qwen3Config(**common, **sizes, num_attention_heads=heads, tie_word_embeddings=name == "qwen3-1.7b")
        config.save_pretrained(here / name)
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (command, shown) = re.search(r"```bash\n(opd-trl plan .*?)```\n\n```text\n(.*?)```", page, re.DOTALL).groups()
    assert main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
    assert "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines()) == shown


def test_the_second_table_holds_every_engine_with_its_total(plan):
    figures = plan("--accelerate_config", "zero2")
    names = [row["accelerate_config"] for row in figures["engines"]]
    assert names == ["single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp2"]
    for row in figures["engines"]:
        assert re.search(
            rf"^{row['accelerate_config']} .* {row['total'] / 2**30:.2f} +{row['verdict']}", plan.text, re.M
        )
        assert plan("--accelerate_config", row["accelerate_config"])["total"] == row["total"]


def test_the_exit_status_says_whether_it_fits(plan):
    server = ["--vllm_mode", "server", "--gpu-memory"]
    needed = plan(*server, "80")["total"] / 2**30
    assert plan(*server, str(needed / 0.89))["verdict"] == "fits"
    assert plan(*server, str(needed / 0.91))["verdict"] == "tight"
    assert plan(*server, str(needed / 1.01), status=1)["verdict"] == "does not fit"
    assert "Does not fit" in plan.text


def test_advice_is_what_planning_the_change_gives(plan):
    flags = ["--accelerate_config", "zero1", "--vllm_mode", "server", "--per_device_train_batch_size", "512"]
    figures = plan(*flags)
    told = {line["change"]: line["total"] for line in figures["advice"]}
    batch = "per_device_train_batch_size 512 -> 256, gradient_accumulation_steps x 2"
    assert told[batch] == plan(*flags, "--per_device_train_batch_size", "256")["total"]
    assert told["max_completion_length 4096 -> 2048"] == plan(*flags, "--max_completion_length", "2048")["total"]
    saved = figures["total"] - told[batch]
    assert plan(*flags)["advice"][0]["saves"] >= saved
    assert f"{batch} saves {saved / 2**30:.2f} GiB" in plan.text


def test_warnings_are_left_to_the_training_process(plan, recwarn):
    plan("--use_peft")  # PEFT asks transformers for a name that goes away
    assert [str(warning.message) for warning in recwarn] == []


def test_lora_is_planned_with_the_adapter_of_the_recipe(plan):
    full, lora = plan(), plan("--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "o_proj")
    assert full["trained_parameters"] == full["student_parameters"]
    assert lora["trained_parameters"] == 2 * 2 * (2 * (64 + 4 * 8))  # two layers, two modules, A and B
    assert component(lora, "optimizer state") == 8 * lora["trained_parameters"]


def test_a_teacher_is_separate_where_the_recipe_names_one(plan):
    assert plan(config=OPD)["teacher_parameters"] > plan(config=OPD)["student_parameters"]
    assert plan(config=OPSD)["teacher_parameters"] == plan(config=OPSD)["student_parameters"]
    assert plan("--teacher_model_kind", "live", config=OPSD)["teacher_parameters"] == 0
    assert "its own teacher" in plan.text


def test_the_dtypes_are_those_that_training_loads(plan):
    figures = plan("--accelerate_config", "single_gpu")
    assert component(figures, "student weights") == 4 * figures["student_parameters"]  # TRL's default, float32
    flags = ["--dtype", "bfloat16", "--teacher_model_init_kwargs", '{"dtype": "bfloat16"}']
    half = plan("--accelerate_config", "single_gpu", *flags)
    by_hand = plan("--accelerate_config", "single_gpu", "--model_init_kwargs", '{"dtype": "bfloat16"}')
    assert component(by_hand, "student weights") == component(half, "student weights")
    assert component(half, "student weights") == 2 * half["student_parameters"]
    assert component(half, "teacher weights") == 2 * half["teacher_parameters"]


def test_the_prompts_are_as_long_as_told(plan):
    short, long = plan("--prompt-length", "10"), plan("--prompt-length", "20000")
    assert component(long, "checkpoints") > 2 * component(short, "checkpoints")
    capped = plan("--prompt-length", "10", "--max_teacher_prompt_length", "20000")
    assert component(capped, "teacher's forward") == component(long, "teacher's forward")
    assert component(capped, "checkpoints") == component(short, "checkpoints")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"loss_support": "intersection", "loss_top_k": 20}),
        ("--loss_support sampled --loss_top_k 7", {"loss_support": "sampled", "loss_top_k": 7}),
        ("", {"reference_model": False, "eight_bit_optimizer": False, "mixed_precision": True}),
        ("", {"gradient_checkpointing": True, "attention": "sdpa", "loss_memory_mib": None, "device": "cuda"}),
        ("", {"generation": "colocate", "vllm_share": 0.25, "vllm_sleeps": False, "gpu_memory": 80 * 2**30}),
        ("", {"batch_size": 2, "generation_batch_size": 8, "completion_length": 4096, "prompt_length": 512}),
        ("--beta 0.1", {"reference_model": True}),
        ("--loss_support sampled --loss_extrapolation 1.25", {"extrapolates": True, "reference_model": False}),
        ("--optim adamw_8bit", {"eight_bit_optimizer": True}),
        ("--bf16 false", {"mixed_precision": False}),
        ("--bf16 false --fp16", {"mixed_precision": True}),
        ("--gradient_checkpointing false", {"gradient_checkpointing": False}),
        ("--attn_implementation eager", {"attention": "eager"}),
        ("--loss_memory_mib 64", {"loss_memory_mib": 64}),
        ("--vllm_gpu_memory_utilization 0.4 --vllm_enable_sleep_mode", {"vllm_share": 0.4, "vllm_sleeps": True}),
        ("--vllm_mode server", {"generation": "server"}),
        (
            "--use_vllm false --gradient_accumulation_steps 3",
            {"generation": "transformers", "generation_batch_size": 6},
        ),
        ("--ds3_gather_for_generation false", {"gather_for_generation": False}),
        ("--teacher_offload cpu", {"teacher_offload": True, "teacher_batch_size": None}),
        ("--teacher_batch_size 4", {"teacher_offload": False, "teacher_batch_size": 4}),
        ("--micro_batch_tokens 9000", {"micro_batch_tokens": 9000, "batch_size": 2}),
        ("--lora_target_modules x_proj y_proj", {"adapter_parameters": None}),
    ],
)
def test_the_fields_of_a_recipe_reach_the_workload(flags, expected, plan, monkeypatch):
    seen, size = [], inputs.size
    monkeypatch.setattr(inputs, "size", lambda work, *engines: seen.append(work) or size(work, *engines))
    plan(*flags.split())
    assert {name: getattr(seen[0], name) for name in expected} == expected


def test_quantized_linear_layers_take_their_bits(plan):
    flags = ["--accelerate_config", "single_gpu", "--use_peft", "--lora_r", "1"]
    flags += ["--lora_target_modules", "q_proj", "o_proj"]
    linear = 2 * (64 * 32 * 2 + 64 * 16 * 2 + 3 * 64 * 128)  # of two layers: attention, MLP
    whole = component(plan(*flags), "student weights")
    adapter = 2 * 2 * (64 + 32)  # 16 bits beside a quantized base, else 32
    for flag, bits in (("--load_in_4bit", 4.5), ("--load_in_8bit", 8)):
        saved = whole - component(plan(*flags, flag), "student weights")
        assert saved == linear * (4 - bits / 8) + adapter * 2
    given = ["--teacher_model_init_kwargs", '{"quantization_config": {"load_in_4bit": true}}']
    saved = component(plan(*flags), "teacher weights") - component(plan(*flags, *given), "teacher weights")
    assert saved == 2 * (128 * 32 * 2 + 128 * 16 * 2 + 3 * 128 * 256) * (4 - 4.5 / 8)


def test_a_teacher_may_rest_on_the_cpu(plan):
    figures = plan("--teacher_offload", "cpu")
    weights = component(figures, "teacher's head") + component(figures, "teacher's body")
    assert weights == component(plan(), "teacher weights")
    assert component(figures, "scored ahead") > 0
    assert component(plan("--teacher_batch_size", "8"), "scored ahead") == component(figures, "scored ahead")
    assert component(plan("--teacher_batch_size", "8"), "teacher's forward") == 4 * component(
        figures, "teacher's forward"
    )


def test_a_micro_batch_by_tokens_counts_its_budget(plan, refuse, configs):
    figures = plan("--micro_batch_tokens", str(2 * (512 + 4096)))
    assert figures["total"] == plan()["total"]
    larger = plan("--micro_batch_tokens", str(4 * (512 + 4096)))
    assert component(larger, "checkpoints") == 2 * component(figures, "checkpoints")
    assert component(larger, "teacher's forward") == 2 * component(figures, "teacher's forward")
    error = refuse("--config", OPD, *configs, "--micro_batch_tokens", "4607")
    assert "below a row of 4608 tokens" in error
    assert "Set it to 4608 or more" in error


@pytest.mark.parametrize("launch", [[], ["--accelerate_config", "zero2"], ["--num_processes", "8"]], ids=str)
def test_a_gpu_generates_its_share_of_the_generation_batch(plan, launch):
    by_steps = plan("--use_vllm", "false", "--steps_per_generation", "3", *launch)
    by_batch = plan("--use_vllm", "false", "--generation_batch_size", str(3 * 2 * 8), *launch)
    assert component(by_steps, "KV cache") == component(by_batch, "KV cache") > 0


def test_a_recipe_for_the_cpu_is_planned_for_one_process_without_a_gpu(plan):
    figures = plan(config=DEMO)
    assert [row["engine"] for row in figures["engines"]] == ["CPU"]
    assert component(figures, "CUDA context") == 0
    on_gpu = plan("--use_cpu", "false", config=DEMO)
    assert (on_gpu["engine"], component(on_gpu, "CUDA context")) == ("DDP", 2**30)


def test_the_engine_and_its_gpus_are_those_of_accelerate(plan, here):
    assert (plan()["engine"], plan()["gpus"]) == ("DDP", 8)
    assert plan("--gpus", "1")["engine"] == "1 GPU"
    assert plan("--accelerate_config", "zero3", "--num_processes", "4")["gpus"] == 4
    assert plan("--accelerate_config", "zero3", "--gpus", "16")["gpus"] == 16
    assert plan("--use_deepspeed", "--zero_stage", "1")["engine"] == "ZeRO-1"
    mine = yaml.safe_load(find_recipe("accelerate_configs/zero2").read_text())
    mine["num_processes"] = 32
    mine["deepspeed_config"]["offload_optimizer_device"] = "cpu"
    (here / "mine.yaml").write_text(yaml.safe_dump(mine))
    figures = plan("--accelerate_config", "mine.yaml")
    assert (figures["engine"], figures["gpus"], component(figures, "optimizer state")) == ("ZeRO-2", 32, 0)
    fsdp = yaml.safe_load(find_recipe("accelerate_configs/fsdp2").read_text())
    fsdp["fsdp_config"]["fsdp_offload_params"] = True
    (here / "mine.yaml").write_text(yaml.safe_dump(fsdp))
    figures = plan("--accelerate_config", "mine.yaml")
    assert figures["engine"] == "FSDP2"
    assert component(figures, "optimizer state") == component(figures, "teacher weights") == 0


def test_a_recipe_may_name_its_engine(plan, here):
    text = find_recipe(OPD).read_text()
    (here / "mine.yaml").write_text(f"{text}\naccelerate_config: fsdp2\nnum_processes: 2\n")
    figures = plan(config="mine.yaml")
    assert (figures["engine"], figures["gpus"]) == ("FSDP2", 2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "mth/opd"], "'mth/opd' is neither a file"),
        (["--config", OPD], "for the student 'Qwen/Qwen3-1.7B': .* Give --student-config DIR"),
        (["--config", OPD, "--student-config", "student"], "teacher 'Qwen/Qwen3-8B': .* Give --teacher-config DIR"),
        (["--config", OPD, "--student-config", "nowhere"], "for the student 'nowhere'"),
        (["--gpus", "2"], "no student is given. Name it in the recipe, or give --student-config DIR"),
        (["--config", OPSD, "--teacher-config", "teacher", "--student-config", "student"], "is its own teacher"),
        (["--config", OPD, "--gpu-memroy", "3"], "--gpu-memroy: did you mean --gpu_memory?"),
        (["--config", OPD, "--loss_topk", "3"], "--loss_topk: did you mean --loss_top_k?"),
        (["--config", OPD, "--loss_top_k", "0"], "loss_top_k must be >= 1, got 0"),
        (["--config", OPD, "--gpus", "0"], "--gpus must be >= 1, got 0"),
        (["--config", OPD, "--gpu-memory", "0.5"], "--gpu-memory must be >= 1, got 0.5"),
        (["--config", OPD, "--prompt-length", "-3"], "--prompt-length must be >= 1, got -3"),
        (["--config", OPD, "--gpus", "many"], "argument --gpus: invalid int value"),
        (["--config", OPD, "--accelerate_config", "zero9"], "Nearest: zero1, zero2, zero3"),
        (["--config", OPD, "--accelerate_config", "fsdp1"], "fsdp_version 1 is not sized. Take .* fsdp2"),
        (["--config", OPD, "--use_deepspeed", "--zero_stage", "0"], "zero_stage must be 1, 2 or 3, got 0"),
        (["--config", OPD, "--use_deepspeed", "--deepspeed_config_file", "d.json"], "'d.json' is not read here"),
        (
            ["--config", OPD, "--accelerate_config", "zero3", "--teacher_offload", "cpu"],
            "teacher_offload='cpu' moves a whole teacher, and ZeRO-3 shards it",
        ),
        (
            ["--config", OPSD, "--student-config", "student", "--use_peft", "--lora_target_modules", "x", "y"],
            "Target modules .* not found in the base model",
        ),
        (["--config", "gpus.yaml"], "gpus is not a key of a recipe. Give it as a flag"),
        (["--config", "list.yaml"], "must contain a YAML mapping"),
        (["--config"], "--config needs a recipe's name or path"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(argv, message, refuse, configs, here):
    (here / "gpus.yaml").write_text("gpus: 8\n")
    (here / "list.yaml").write_text("- a\n")
    assert re.search(message, refuse(*argv))


def test_broken_yaml_is_an_error_of_the_parser(here, capsys):
    (here / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(SystemExit):
        main(["plan", "--config", "broken.yaml"])
    assert "opd-trl plan: error: broken.yaml is not valid YAML" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_an_error_behind_the_figures(configs, here, capsys):
    (here / "nowhere").write_text("a file, not a folder")
    assert main(["plan", "--config", OPD, *configs, "--json", "nowhere/plan.json"]) == 2
    captured = capsys.readouterr()
    assert "total" in captured.out
    assert captured.err.startswith("opd-trl plan: error: ")
    assert "nowhere" in captured.err
    assert captured.err.count("\n") == 1


def test_a_model_that_is_no_transformer_decoder_is_refused(refuse, here):
    MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=32).save_pretrained(here / "mamba")
    assert "a mamba model is not a transformer decoder" in refuse("--config", OPSD, "--student-config", "mamba")
