"""Rows, teachers and contexts whose images a model would not see as it should: refused before anything is written."""

import json

import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value

from opd_trl import OPDConfig
from opd_trl.data.row_images import counts_of
from opd_trl.trainers import images as trainer_images
from opd_trl.trainers.images import as_read, check_images, check_sharded
from tests import tiny
from tests.trainers import vision
from tests.trainers.build import fixed_batch, settings
from tests.trainers.vision import vlm_trainer


ONE, TWO = vision.pictures(2)
PLACE = {"type": "image"}


@pytest.fixture(scope="module")
def processor():
    return vision.build_processor()


def text(words):
    return {"type": "text", "text": words}


def user(content):
    return {"role": "user", "content": content}


def rows(prompts, **columns):
    return Dataset.from_dict({"prompt": prompts, **columns})


def refused(tmp_path, processor, match, **options):
    with pytest.raises(ValueError, match=match):
        vlm_trainer(tmp_path, processor, **{"privileged_context": "b"} | options)
    assert not (tmp_path / "out").exists()


def test_as_many_images_as_places_for_them(tmp_path, processor):
    good = [user([PLACE, text("what?")])]
    for prompt, images, match in [
        ([user([PLACE, PLACE, text("what?")])], [ONE], "2 places for images .* 1 images in the column"),
        ([user([text("what?")])], [ONE], "0 places for images .* 1 images in the column"),
        ([user([PLACE, text("what?")])], [], "1 places for images .* 0 images in the column"),
    ]:
        dataset = rows([good, good, prompt, good], images=[[ONE], [TWO], images, [ONE]])
        refused(tmp_path, processor, f"row 2 of the train set: the prompt has {match}", dataset=dataset)
    refused(tmp_path, processor, "1 images, and its prompt is a text", dataset=rows(["what?"] * 4, image=[ONE] * 4))
    both = [user("what?"), {"role": "assistant", "content": "a"}, user("and?")]
    dataset = Dataset.from_dict({"prompt": [both, [*both[:2], user("and this?")]] * 2, "images": [[ONE]] * 4})
    vlm_trainer(tmp_path, processor, dataset=dataset, privileged_context="b")  # TRL puts it before the first turn


def test_a_row_of_a_stream_is_refused_when_it_comes(tmp_path, processor):
    def make():
        for i in range(8):
            yield {"prompt": [user([PLACE, text("what?")])], "images": [ONE] * (1 + (i == 6))}

    trainer = vlm_trainer(tmp_path, processor, dataset=IterableDataset.from_generator(make), privileged_context="b")
    with pytest.raises(ValueError, match=r"row 2 of this batch .* 1 places for images .* 2 images"):
        fixed_batch(trainer, list(make())[4:])


def test_an_image_that_comes_late_in_a_set_counts(tmp_path, processor):
    late = [[user([text("what?")])]] * 3 + [[user([{**PLACE, "image": ONE}, text("what?")])]]
    text_alone = tiny.build_model(vocab_size=len(processor.tokenizer))
    match = "the train set has images, and the teacher is a qwen3 model, which reads text alone"
    refused(tmp_path, processor, match, dataset=rows(late), teacher=text_alone, privileged_context=None)


def test_a_context_brings_its_own_images(tmp_path, processor):
    def context(*parts):
        return [[user([*parts, text("like this")]), {"role": "assistant", "content": [text("a")]}]] * 4

    options = {"privileged_context": None, "privileged_builder": "few_shot"}
    prompts = [[user("what?")]] * 4
    dataset = rows(prompts, privileged_context=context(PLACE))
    refused(tmp_path, processor, "row 0 .* has a place for an image without one", dataset=dataset, **options)
    dataset = rows(["what?"] * 4, privileged_context=context({**PLACE, "image": ONE}))
    refused(tmp_path, processor, "parts that are not text, and the prompt is a text", dataset=dataset, **options)
    system = [[{"role": "system", "content": [{**PLACE, "image": ONE}, text("b")]}]] * 4
    dataset = rows([[{"role": "system", "content": "c"}, user("what?")]] * 4, privileged_context=system)
    refused(tmp_path, processor, "system turn of the privileged context has parts", dataset=dataset, **options)
    teacher = tiny.build_model(vocab_size=len(processor.tokenizer))
    dataset = rows(prompts, privileged_context=context({**PLACE, "image": ONE}))
    refused(tmp_path, processor, "which reads text alone", dataset=dataset, teacher=teacher, **options)


def test_a_shared_context_of_a_file_may_have_images(tmp_path, processor):
    picture, file = tmp_path / "one.png", tmp_path / "context.json"
    ONE.save(picture)
    messages = [user([{**PLACE, "image": str(picture)}, text("like this")]), {"role": "assistant", "content": "a"}]
    file.write_text(json.dumps(messages))
    options = {"privileged_context_file": str(file), "privileged_builder": "few_shot"}
    trainer = vlm_trainer(tmp_path, processor, dataset=rows([[user("what?")]] * 4), **options)
    image_id = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
    assert ((fixed_batch(trainer)["teacher_prompt_ids"] == image_id).sum(-1) == vision.TOKENS).all()


def test_a_teacher_that_reads_images_otherwise_is_refused(tmp_path, processor):
    def teacher(**tower):
        return vision.build_vlm(processor, seed=1, **tower)

    options = {"privileged_context": None}
    match = "the teacher reads them otherwise than the student: vision_config.patch_size is 7, the student's is 14"
    refused(tmp_path, processor, match, teacher=teacher(patch_size=7), **options)
    other = vision.build_processor()
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    for name, used in (("same", processor), ("other", other)):
        teacher().save_pretrained(tmp_path / name)
        used.save_pretrained(tmp_path / name)
    refused(tmp_path, processor, r"image_mean is \[0.1, 0.2, 0.3\]", teacher=str(tmp_path / "other"), **options)
    vlm_trainer(tmp_path, processor, teacher=str(tmp_path / "same"), **options)


@pytest.mark.parametrize(
    ("options", "teachers", "match"),
    [
        ({}, {"": "http://127.0.0.1:1"}, "a served teacher reads text alone"),
        ({}, {"a": "http://127.0.0.1:1", "b": None}, "a served teacher reads text alone"),
        ({"teacher_vocabulary": "text"}, {"": None}, "teacher_vocabulary: text reads text alone"),
    ],
)
def test_a_teacher_of_text_is_refused_with_images(tmp_path, processor, options, teachers, match):
    sets = vlm_trainer(tmp_path, processor, privileged_context="b").row_checks.sets
    with pytest.raises(ValueError, match=match):
        check_images(
            OPDConfig(**settings(tmp_path, **options)), sets, processor, vision.build_vlm(processor), teachers
        )


def test_sharded_weights_need_an_image_in_every_row_or_in_none(tmp_path, processor, monkeypatch):
    some = rows([[user("what?")]] * 4, images=[[ONE], [], [TWO], [ONE]])
    sets = {"some": some, "all": vision.questions(), "none": rows([[user("what?")]] * 4)}
    options = {"privileged_context": "b"}
    trainers = {name: vlm_trainer(tmp_path, processor, dataset=x, **options) for name, x in sets.items()}
    check_sharded(trainers["some"])
    # An engine that shards needs several processes.
    monkeypatch.setattr(trainer_images, "is_sharded", lambda trainer: True)
    check_sharded(trainers["all"])
    check_sharded(trainers["none"])
    with pytest.raises(ValueError, match=r"rows with images and rows without.*DDP or ZeRO-2"):
        check_sharded(trainers["some"])


def test_images_of_a_column_are_counted_without_decoding_them():
    dataset = rows(["a"] * 3, images=[[ONE, TWO], [], None]).select([2, 0, 1])
    assert counts_of(dataset) == [0, 2, 0]
    assert counts_of(rows(["a"] * 2, image=[None, ONE])) == [0, 1]
    assert counts_of(rows(["a"])) is None


def test_what_tables_add_to_parts_is_taken_off_and_what_they_hold_is_decoded(tmp_path):
    """Qwen's templates take a text with a key `image` for an image, whatever it holds."""
    prompt = [user([text("what?"), {**PLACE, "image": ONE}])]
    part = {"type": Value("string"), "text": Value("string"), "image": Image()}
    features = Features({"prompt": List({"role": Value("string"), "content": List(part)})})
    for dataset in (rows([prompt]), Dataset.from_dict({"prompt": [prompt]}, features=features)):
        assert "image" in dataset[0]["prompt"][0]["content"][0]
        (row,) = as_read([dataset[0] | {"context": dataset[0]["prompt"]}], "context")
        assert row["prompt"] == [user([text("what?"), PLACE])]
        first, second = row["context"][0]["content"]
        assert first == text("what?")
        assert second.keys() == {"type", "image"}
        assert [second["image"].tobytes(), row["images"][0].tobytes()] == [ONE.tobytes()] * 2


def test_a_row_without_an_image_has_none_of_a_list():
    found = as_read([{"prompt": [user("a")], "image": None}, {"prompt": [user("a")], "image": ONE}])
    assert [row["images"] for row in found] == [[], [ONE]]
