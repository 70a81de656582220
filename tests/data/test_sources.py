import json

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from opd_trl.data.files import DataError
from opd_trl.data.sources import load_named, read_file
from tests.data.conftest import write


def test_a_folder_in_the_layout_of_the_hub_is_loaded_by_configuration_and_split(here):
    (here / "copy" / "main").mkdir(parents=True)
    for split, text in (("train", "1?"), ("test", "2?")):
        Dataset.from_list([{"question": text, "answer": "#### 1"}]).to_parquet(
            here / "copy" / "main" / f"{split}-00000-of-00001.parquet"
        )
    (here / "copy" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n---\n"
    )
    assert [row["question"] for row in load_named("gsm8k", path="copy")] == ["1?"]
    assert [row["question"] for row in load_named("gsm8k", path="copy", split="test")] == ["2?"]
    with pytest.raises(DataError, match=r"no split 'dev'.*--split"):
        load_named("gsm8k", path="copy", split="dev")
    with pytest.raises(DataError, match=r"no configuration 'socratic'.*--config"):
        load_named("gsm8k", path="copy", config="socratic")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="did you mean math500"):
        load_named("math50")


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_remedies(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hub cannot be reached for openai/gsm8k.*--path FOLDER.*procedural"):
        load_named("gsm8k")
    with pytest.raises(DataError, match=r"gated, too: a token is needed"):
        load_named("wildguardmix")


def test_a_gated_data_set_without_a_token_says_how_to_get_one(monkeypatch):
    def gated(*args, **kwargs):
        raise DatasetNotFoundError(
            "Dataset 'allenai/wildguardmix' is a gated dataset on the Hub. You must be authenticated to access it."
        )

    monkeypatch.setattr("datasets.load_dataset", gated)
    with pytest.raises(DataError, match=r"is gated.*Accept its conditions at.*HF_TOKEN"):
        load_named("wildguardmix")


def test_revision_and_split_reach_the_hub(monkeypatch):
    asked = {}
    rows = Dataset.from_list([{"question": "1?", "answer": "#### 1"}])
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *place, **options: asked.update(place=place, **options) or rows
    )
    assert len(list(load_named("gsm8k", split="test", revision="abc"))) == 1
    assert asked == {"place": ("openai/gsm8k", "main"), "split": "test", "revision": "abc"}


def test_a_missing_column_names_row_and_columns(here):
    write(here / "rows.jsonl", [{"question": "1?", "answer": "#### 1"}, {"question": "2?"}])
    with pytest.raises(DataError, match=r"rows.jsonl, row 2 has no column 'answer'; it has 'question'"):
        list(load_named("gsm8k", path="rows.jsonl"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".json"])
def test_every_file_type_is_read(suffix, here):
    rows = Dataset.from_list([{"prompt": "1?"}, {"prompt": "2?"}])
    {".parquet": rows.to_parquet, ".csv": rows.to_csv}.get(suffix, rows.to_json)(f"rows{suffix}")
    assert [row["prompt"] for row in read_file(here / f"rows{suffix}")] == ["1?", "2?"]


def test_a_rewritten_file_is_read_anew(here):
    for text in ("old", "new"):
        (here / "rows.json").write_text(json.dumps([{"prompt": text}]))
        assert [row["prompt"] for row in read_file(here / "rows.json")] == [text]
