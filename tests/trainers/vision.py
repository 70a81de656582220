"""Tiny vision-language models of three families with their processors, and pictures of noise; built, never loaded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from tests import tiny
from tests.trainers.build import settings


SIZE, PATCH = 28, 14
IMAGE = "<image>"
#: Tokens that a picture takes in a prompt of the LLaVA.
TOKENS = (SIZE // PATCH) ** 2
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2,
    "pad_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip


def build_tokenizer(image: str, *special: str):
    """The characters of the tiny tokenizer and further tokens; `image` is what the template writes for a picture."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.START, *special]})
    tokenizer.chat_template = TEMPLATE.replace(IMAGE, image)
    return tokenizer


def image_processor(name: str):
    """The class of an image processor that needs no torchvision."""
    return getattr(transformers, f"{name}Pil", getattr(transformers, name, None))


def build_processor() -> LlavaProcessor:
    """The processor of the tiny LLaVA: one token for a part of a picture."""
    tokenizer = build_tokenizer(IMAGE, IMAGE)
    size = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=image_processor("CLIPImageProcessor")(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_vlm(processor: LlavaProcessor, *, seed: int = 0, **tower: Any) -> LlavaForConditionalGeneration:
    """The tiny student behind a tiny CLIP, whose pictures reach it loud enough to change what it says."""
    tokenizer = processor.tokenizer
    text = tiny.build_model(seed=seed, vocab_size=len(tokenizer)).config
    eyes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH} | tower
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, **eyes),
            text_config=text,
            image_token_index=image_id,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    )
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.mul_(10)
    return model


class ImagesAlone(Qwen3VLProcessor):
    """Without the part for video, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def build_qwen_processor() -> Qwen3VLProcessor:
    """The processor of the tiny Qwen3-VL: the more pixels, the more tokens."""
    tokenizer = build_tokenizer("<|vision_start|><|image_pad|><|vision_end|>", *QWEN)
    images = image_processor("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024
    )
    return ImagesAlone(images, tokenizer, None, chat_template=tokenizer.chat_template)


def build_qwen(processor: Qwen3VLProcessor, *, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    tokenizer = processor.tokenizer
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    tower = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0], "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope},
            vision_config=tower,
            tie_word_embeddings=True,
            **dict(zip(names, tokenizer.convert_tokens_to_ids(QWEN), strict=True)),
        )
    )


GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def build_gemma_processor() -> Gemma3Processor:
    """The processor of the tiny Gemma 3: four tokens for a picture, which see one another."""
    tokenizer = build_tokenizer(GEMMA["boi_token"], *GEMMA.values())
    for name, token in GEMMA.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    images = image_processor("Gemma3ImageProcessor")(size={"height": 16, "width": 16})
    return Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)


def build_gemma(processor: Gemma3Processor, *, seed: int = 0) -> Gemma3ForConditionalGeneration:
    tokenizer = processor.tokenizer
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 1}
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=TEXT | layers | {"vocab_size": len(tokenizer)},
            vision_config=tower | {"image_size": 16, "patch_size": 4, "vision_use_head": False},
            mm_tokens_per_image=4,
            image_token_index=tokenizer.image_token_id,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
        )
    )
    with torch.no_grad():  # zero before it is trained
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3)
    return model


class Family(NamedTuple):
    """How a tiny processor is built, and the model that it belongs to."""

    processor: Callable[[], Any]
    model: Callable[..., nn.Module]


FAMILIES = {
    "llava": Family(build_processor, build_vlm),
    "qwen3_vl": Family(build_qwen_processor, build_qwen),
    "gemma3": Family(build_gemma_processor, build_gemma),
}


def pictures(n: int, *, seed: int = 0, size: int = SIZE) -> list[Image.Image]:
    noise = np.random.default_rng(seed)
    return [Image.fromarray(noise.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def questions(n: int = 4, **columns) -> Dataset:
    """The same question about pictures that differ."""
    filled = {name: [value] * n for name, value in columns.items()}
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": "what?"}]] * n, "image": pictures(n), **filled})


def vlm_trainer(tmp_path, processor, *, student=None, teacher=None, dataset=None, trainer_options=None, **options):
    """An OPSDTrainer on pictures, or an OPDTrainer where there is a teacher; by default of the tiny LLaVA."""
    trainer, config = (OPSDTrainer, OPSDConfig) if teacher is None else (OPDTrainer, OPDConfig)
    options = {"loss_support": "full", "disable_dropout": True} | options
    return trainer(
        build_vlm(processor) if student is None else student,
        args=config(**settings(tmp_path, **options)),
        train_dataset=questions() if dataset is None else dataset,
        processing_class=processor,
        **({} if teacher is None else {"teacher_model": teacher}),
        **(trainer_options or {}),
    )
