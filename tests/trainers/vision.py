"""A tiny LLaVA with its processor, and pictures of noise; built, never downloaded."""

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from tests import tiny


SIZE, PATCH = 28, 14
IMAGE = "<image>"
#: Tokens that a picture takes in a prompt.
TOKENS = (SIZE // PATCH) ** 2
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def build_processor() -> LlavaProcessor:
    """The characters of the tiny tokenizer and one token for a part of a picture."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.START, IMAGE]})
    tokenizer.chat_template = TEMPLATE
    images = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    size = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=images(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_vlm(processor: LlavaProcessor, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """The tiny student behind a tiny CLIP, whose pictures reach it loud enough to change what it says."""
    tokenizer = processor.tokenizer
    text = tiny.build_model(seed=seed, vocab_size=len(tokenizer)).config
    eyes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH}
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


def pictures(n: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(n)]


def questions(n: int = 4, **columns) -> Dataset:
    """The same question about pictures that differ."""
    filled = {name: [value] * n for name, value in columns.items()}
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": "what?"}]] * n, "image": pictures(n), **filled})
