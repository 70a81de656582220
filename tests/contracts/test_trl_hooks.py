"""Everything private or subclassed of TRL that this package relies on, pinned.

A failure here means: the installed TRL changed a hook. Read its diff, adapt the override that is named, then the pin.
"""

import inspect

import pytest
import trl
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from trl import GRPOConfig, GRPOTrainer, TrlParser, chat_template_utils
from trl.data_utils import prepare_multimodal_messages
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import _ForwardRedirection
from trl.trainer import utils

from opd_trl.models.multimodal import COUNTS, MULTIMODAL_KEYS


METHODS = {
    "__init__": [
        "self", "model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class",
        "reward_processing_classes", "callbacks", "optimizers", "quantization_config", "peft_config", "tools",
        "rollout_func", "environment_factory",
    ],
    "_set_signature_columns_if_needed": ["self"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    "_tool_call_loop": [
        "self", "prompts", "prompt_ids", "completion_ids", "completions", "logprobs", "images",
        "multimodal_fields",
    ],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_train_sampler": ["self", "dataset"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "_get_output_dir": ["self", "trial"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_load_best_model": ["self"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_save_rng_state": ["self", "output_dir"],
    "_load_rng_state": ["self", "checkpoint"],
}  # fmt: skip
FUNCTIONS = {
    _ForwardRedirection.__call__: ["self", "wrapper_module", "original_module", "method", "args", "kwargs"],
    chat_template_utils.supports_tool_calling: ["processing_class"],
    chat_template_utils.add_response_schema: ["processing_class"],
    chat_template_utils.is_chat_template_prefix_preserving: ["processing_class"],
    chat_template_utils.get_training_chat_template: ["processing_class", "tokenizer"],
    utils.create_model_from_path: ["model_id", "architecture", "kwargs"],
    utils.get_config_model_id: ["config"],
    utils.maybe_gather_lm_head_ctx: ["params"],
    utils.split_pixel_values_by_grid: ["batch"],
    utils.unsplit_pixel_values_by_grid: ["batch"],
    prepare_multimodal_messages: ["messages", "images"],
    prepare_deepspeed: ["model", "accelerator"],
    prepare_fsdp: ["model", "accelerator"],
    fsdp2_prepare_model: ["accelerator", "model"],
    TrlParser.parse_args_and_config: [
        "self", "args", "return_remaining_strings", "fail_with_unknown_args", "separate_remaining_strings",
    ],
    TrlParser.set_defaults_with_config: ["self", "kwargs"],
}  # fmt: skip
# What GRPOTrainer's methods read from `self` or the batch while ours run inside them.
SOURCES = {
    "__init__": [
        "self.beta", "self.temperature", "self.chat_template_kwargs", "self._entropy_bonus_enabled",
        "self.aux_loss_enabled", "self.router_aux_loss_coef", "self.reward_func_names", "self._metrics", "self._logs",
        "self._tokenizer", "self.max_completion_length", "self.num_generations",
        "self.environment_factories", "self.rollout_func",
    ],
    "_generate_and_score_completions": [
        '"prompt_ids"', '"prompt_mask"', '"completion_ids"', '"completion_mask"', '"advantages"', '"tool_mask"',
        '["reward"]', '["reward_std"]', '["frac_reward_zero_std"]',
        # The prompts that the student was given: what an environment adds, its images.
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)", "prompts[i] = prompt[:-1] +",
        "prepare_multimodal_messages(prompt, images=image_list)",
        "self.processing_class(images=images, text=prompts_text,", 'output["num_images"] = num_images',
        "old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
        "if old_per_token_logps is not None:", "self.use_vllm and self.vllm_importance_sampling_correction",
        # A rollout that a schedule stops is not masked.
        "if self.mask_truncated_completions:",
    ],
    # Given text and prefixes come in as a rollout_func; lengths are logged here, and nowhere else.
    "_generate": [
        "output = self.rollout_func(prompts, self)", '{"prompt_ids", "completion_ids", "logprobs"}',
        'tool_mask = extra_fields.pop("env_mask", None)', "completion_ids, logprobs = self._generate_single_turn(",
        '["num_tokens"] = [', '["completions/mean_length"].append(', '["completions/clipped_ratio"].append(',
    ],
    # How deep a rollout may go is read here, images that tools answer with come last, and 0 is what the student did
    # not write; a row's environment says which tools its prompt tells of.
    "_tool_call_loop": [
        "iteration_num < self.max_tool_calling_iterations", "tool_failure_count, tool_images",
        "[0] * tool_length + [1] * post_tool_length",
    ],
    # Ours reads rows one by one with it, each with its own environment, and makes these None empty lists.
    "_tokenize_prompts": [
        "zip(prompts, self._batch_environments, strict=True)", "self._env_tools[name]",
        "images.append(prompt_images if prompt_images else None)",
        "return prompt_ids, images, multimodal_fields",
    ],
    # Lists in a generation batch are cut and shuffled by rows, as the images of the teacher's prompts are.
    "_prepare_inputs": [
        "split_pixel_values_by_grid(generation_batch)", "shuffle_sequence_dict(generation_batch)",
        "split_tensor_dict(generation_batch,",
    ],
    # Ours merges the adapter around it, but not where TRL syncs to vLLM or casts the model itself.
    "_generate_single_turn": [
        "if self.use_vllm:", "elif self.use_transformers_continuous_batching:", "unwrapped_model.to(torch.bfloat16)",
        "unwrapped_model.generate(",
        # What a rollout's limit is read from, beside vLLM's (below).
        "generation_config=self.generation_config",
    ],
    # A checkpoint is written where this says, all of it: while it is saved, that is a folder apart.
    "_save_checkpoint": ["output_dir = os.path.join(self._get_output_dir(trial=trial), checkpoint_folder)"],
    # The policy loss runs on a forward that is already done: the model may be used for nothing but its log-probs.
    "_compute_loss": ["self._get_per_token_logps_and_entropies(", 'inputs["advantages"]'],
    "_get_per_token_logps_and_entropies": [
        "model(**model_inputs, labels=labels, fused_lm_head=True)",
        "outputs.log_probs[:, -logits_to_keep:]", "outputs.entropy[:, -logits_to_keep:]", "outputs.aux_loss",
    ],
}  # fmt: skip


def parameters(function) -> list[str]:
    return list(inspect.signature(inspect.unwrap(function)).parameters)


def changed(name: str) -> str:
    return f"TRL {trl.__version__} changed {name}; this package was written for 1.16"


@pytest.mark.parametrize("name", METHODS)
def test_an_overridden_or_called_method_of_grpo_trainer_keeps_its_signature(name):
    assert parameters(getattr(GRPOTrainer, name)) == METHODS[name], changed(f"GRPOTrainer.{name}")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_a_private_helper_of_trl_keeps_its_signature(function):
    assert parameters(function) == FUNCTIONS[function], changed(function.__qualname__)


@pytest.mark.parametrize("name", SOURCES)
def test_the_state_that_grpo_trainer_shares_with_ours_is_still_there(name):
    source = inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, name)))
    for fragment in SOURCES[name]:
        assert fragment in source, changed(f"GRPOTrainer.{name} ({fragment})")


def test_vllm_reads_the_limit_of_a_rollout_anew_each_time():
    source = inspect.getsource(inspect.unwrap(VLLMGeneration.generate))
    assert "max_completion_length = self.max_completion_length" in source, changed("VLLMGeneration.generate")
    assert source.count('"max_tokens": max_completion_length') == 2, changed("VLLMGeneration.generate (max_tokens)")


def test_grpo_loss_uses_its_model_argument_only_to_score_the_completion():
    source = inspect.getsource(inspect.unwrap(GRPOTrainer._compute_loss))
    uses = [line.strip() for line in source.splitlines()[1:] if "model" in line.replace("self.model", "")]
    code = [line for line in uses if not line.startswith("#")]
    assert code == ["model,"], changed("GRPOTrainer._compute_loss (its use of `model`)")


def test_what_a_vision_language_model_takes_of_a_batch_is_what_grpo_trainer_gives_it():
    taken = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    rest = {"self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"}
    rest |= {"compute_entropy", "compute_aux_loss"}
    assert {*MULTIMODAL_KEYS, *COUNTS} == set(taken) - rest, changed("what GRPOTrainer gives to its model")


def test_grpo_config_still_refuses_a_group_of_one_and_nothing_else_about_it(tmp_path):
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig(str(tmp_path), num_generations=1, use_cpu=True, bf16=False)
    source = inspect.getsource(GRPOConfig.__post_init__)
    assert "self.num_generations < 2" in source, changed("GRPOConfig.__post_init__ (the check of num_generations)")


def test_the_loss_of_grpo_trainer_is_not_scaled_again_by_transformers():
    assert GRPOTrainer.loss_is_scaled_for_ga is True, changed("GRPOTrainer.loss_is_scaled_for_ga")
