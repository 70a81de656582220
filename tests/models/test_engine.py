import importlib.util
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

from opd_trl.models.sampling import Sampling
from opd_trl.models.transformers_engine import TransformersEngine, answer_ids, end_ids, greedy_answers
from opd_trl.models.vllm_engine import VLLMEngine
from tests import tiny


GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=8)
SAMPLED = Sampling(temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=8)


def prompts(tokenizer, n=4):
    texts = tiny.questions(n)["prompt"]
    return [tokenizer.apply_chat_template(text, add_generation_prompt=True)["input_ids"] for text in texts]


def test_greedy_answers_are_those_of_the_other_function():
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    expected = greedy_answers(tiny.build_model(), tokenizer, tiny.questions(4)["prompt"], max_new_tokens=8)
    done = TransformersEngine(model, tokenizer).generate(prompts(tokenizer), GREEDY, [0] * 4)
    assert [completion.text for completion in done] == expected


def test_sampled_answers_follow_the_seed_of_torch_and_end_with_the_end_token():
    model, tokenizer, drawn = tiny.build_model(), tiny.build_tokenizer(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(answer_ids(model, tokenizer, tiny.questions(4)["prompt"], max_new_tokens=64, temperature=1.0))
    assert drawn[0] == drawn[1] != drawn[2]
    ends = [ids.index(tokenizer.eos_token_id) for ids in drawn[0] if tokenizer.eos_token_id in ids]
    assert ends
    assert ends == [len(ids) - 1 for ids in drawn[0] if tokenizer.eos_token_id in ids]


def test_samples_repeat_with_their_seeds_and_differ_with_others():
    engine = TransformersEngine(tiny.build_model(), tiny.build_tokenizer())
    ids = prompts(engine.tokenizer)
    first, again, other = (engine.generate(ids, SAMPLED, [seed] * 4) for seed in (1, 1, 2))
    assert first == again != other


def test_the_models_own_sampling_settings_decide_nothing():
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    model.generation_config.update(top_k=1, repetition_penalty=5.0, min_new_tokens=8, temperature=0.01, do_sample=True)
    engine = TransformersEngine(model, tokenizer)
    plain = TransformersEngine(tiny.build_model(), tokenizer)
    ids = prompts(tokenizer)
    assert engine.generate(ids, SAMPLED, [3] * 4) == plain.generate(ids, SAMPLED, [3] * 4)


def test_an_answer_that_ends_by_itself_is_told_from_one_that_is_cut():
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    ids = prompts(tokenizer, 1)
    engine = TransformersEngine(model, tokenizer)
    cut = engine.generate(ids, GREEDY, [0])[0]
    assert (cut.num_tokens, cut.finished) == (8, False)
    with torch.no_grad():
        sampled = model.generate(input_ids=torch.tensor(ids), max_new_tokens=3)[0, -1].item()
    model.generation_config.eos_token_id = [2, sampled]
    ended = TransformersEngine(model, tokenizer).generate(ids, GREEDY, [0])[0]
    assert ended.finished
    assert ended.num_tokens <= 3


def test_what_follows_the_end_of_a_shorter_answer_of_a_batch_is_not_counted():
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    ids, longer = prompts(tokenizer, 6), Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=24)
    first = TransformersEngine(model, tokenizer).generate(ids, longer, [0] * 6)
    common = Counter(text for completion in first for text in completion.text).most_common(3)
    model.generation_config.eos_token_id = [2, *(tokenizer.convert_tokens_to_ids(text) for text, _ in common)]
    engine = TransformersEngine(model, tokenizer)
    together = engine.generate(ids, longer, [0] * 6)
    assert len({completion.num_tokens for completion in together}) > 1
    assert together == [engine.generate([prompt], longer, [0])[0] for prompt in ids]


def test_an_adapter_is_active():
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    adapted = get_peft_model(tiny.build_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    ids = prompts(tokenizer)
    with_adapter = TransformersEngine(adapted, tokenizer).generate(ids, GREEDY, [0] * 4)
    without = TransformersEngine(tiny.build_model(), tokenizer).generate(ids, GREEDY, [0] * 4)
    assert with_adapter != without


def test_a_model_that_could_never_end_is_refused():
    with pytest.raises(ValueError, match="eos_token"):
        end_ids(None, None)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_asked_for_by_name_where_it_is_missing():
    with pytest.raises(ImportError, match=r"pip install 'opd_trl\[vllm\]'"):
        VLLMEngine("any")
