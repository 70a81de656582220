import json

import pytest
from transformers import Qwen3Config

from opd_trl.cli.main import main
from opd_trl.planning.component import GIB
from opd_trl.planning.workload import ModelSize, Teacher, Workload
from opd_trl.scripts.recipe_files import find_recipe, read_recipe
from tests import tiny
from tests.planning.sized import sized


OPD = "math/opd_qwen3_1.7b_from_8b"
QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40960}


@pytest.fixture(scope="session")
def student() -> ModelSize:
    """Qwen3-1.7B, loaded in float32."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}
    return sized(Qwen3Config(**QWEN3, **sizes, tie_word_embeddings=True), "float32")


@pytest.fixture(scope="session")
def teacher() -> ModelSize:
    """Qwen3-8B, loaded in bfloat16."""
    sizes = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
    return sized(Qwen3Config(**QWEN3, **sizes, tie_word_embeddings=False))


@pytest.fixture(scope="session")
def work(student, teacher) -> Workload:
    """Full fine-tuning of the student with the teacher, as in math/opd_qwen3_1.7b_from_8b without vLLM."""
    return Workload(
        student=student,
        teachers=(Teacher("", teacher),),
        teacher_kind="model",
        loss_support="student",
        loss_top_k=20,
        use_peft=False,
        adapter_parameters=17_432_576,
        mixed_precision=True,
        eight_bit_optimizer=False,
        reference_model=False,
        teacher_offload=False,
        teacher_batch_size=None,
        batch_size=2,
        generation_batch_size=8,
        prompt_length=512,
        teacher_prompt_length=1024,
        completion_length=4096,
        gradient_checkpointing=True,
        attention="sdpa",
        loss_memory_mib=None,
        generation="transformers",
        vllm_share=0.25,
        vllm_sleeps=False,
        gather_for_generation=True,
        gpu_memory=80 * GIB,
        device="cuda",
    )


@pytest.fixture
def configs(here):
    """Folders with the config.json of a student and of a teacher, without weights."""
    tiny.build_model(hidden_size=64).config.save_pretrained(here / "student")
    tiny.build_model(hidden_size=128).config.save_pretrained(here / "teacher")
    return ["--student-config", "student", "--teacher-config", "teacher"]


@pytest.fixture
def plan(configs, here, capsys):
    """Run `opd-trl plan`, return its figures; `.text` of the function is what it printed."""

    def run(*argv: str, config: str = OPD, status: int = 0) -> dict:
        has_teacher = read_recipe(find_recipe(config)).values.get("teacher_model_name_or_path") is not None
        models = configs if has_teacher else configs[:2]
        assert main(["plan", "--config", config, *models, "--json", "plan.json", *argv]) == status
        run.text = capsys.readouterr().out
        return json.loads((here / "plan.json").read_text())

    return run


@pytest.fixture
def refuse(capsys):
    """Run a command line that must be refused; return the one line of the error."""

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            raise SystemExit(main(["plan", *argv]))
        assert exit_.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("opd-trl plan: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run
