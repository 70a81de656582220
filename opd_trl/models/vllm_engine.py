"""Generation with vLLM's offline engine, where it is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

from .sampling import Completion, Sampling
from .transformers_engine import end_ids


class VLLMEngine:
    """vLLM's `LLM`, with a LoRA adapter where one is given. Each answer has its own seed.

    Args:
        model: folder or hub id.
        adapter: folder of a LoRA adapter; its rank is read from it.
        dtype: as vLLM takes it.
        batch_size: prompts given to vLLM at once, which schedules them itself; what is lost by a kill.
        options: other arguments of `vllm.LLM`, e.g. `{"tensor_parallel_size": 2}`.

    Raises:
        ImportError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        batch_size: int = 512,
        options: dict[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "--engine vllm needs vLLM: pip install 'opd_trl[vllm]' (CUDA), or leave --engine at transformers."
            )
        from vllm import LLM

        arguments: dict[str, Any] = {"model": model, "dtype": dtype, "generation_config": "vllm", **(options or {})}
        self.lora = None
        if adapter is not None:
            from peft import PeftConfig
            from vllm.lora.request import LoRARequest

            self.lora = LoRARequest("adapter", 1, adapter)
            arguments |= {"enable_lora": True, "max_lora_rank": PeftConfig.from_pretrained(adapter).r}
        self.llm, self.batch_size = LLM(**arguments), batch_size
        self.context_length = self.llm.llm_engine.model_config.max_model_len
        self.end_ids = end_ids(_eos_of(model), self.llm.get_tokenizer().eos_token_id)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """An answer to each prompt of token ids, drawn with its own seed."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                stop_token_ids=self.end_ids,
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, parameters, use_tqdm=False, lora_request=self.lora)
        return [
            Completion(answer.text, len(answer.token_ids), answer.finish_reason == "stop")
            for answer in (output.outputs[0] for output in outputs)
        ]


def _eos_of(model: str) -> int | list[int] | None:
    """The end tokens of a model's generation settings; none where it has no such file."""
    try:
        return GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        return None
