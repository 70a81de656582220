import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from trl import DatasetMixtureConfig

from opd_trl.scripts.common import OPDScriptArguments
from opd_trl.scripts.data_files import DataError, load_splits, looks_local


def load(name=None, *, evaluate=False, mixture=None, **options):
    return load_splits(
        OPDScriptArguments(dataset_name=name, **options),
        DatasetMixtureConfig(datasets=mixture or []),
        evaluate=evaluate,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".json"])
def test_a_local_file_is_the_training_split(suffix, here):
    rows = Dataset.from_list([{"prompt": f"question {i}"} for i in range(3)])
    write = {".parquet": rows.to_parquet, ".csv": rows.to_csv}.get(suffix, rows.to_json)
    write(f"rows{suffix}")
    train, evaluation = load(f"rows{suffix}")
    assert train["prompt"][:] == ["question 0", "question 1", "question 2"]
    assert evaluation is None


def test_conversational_prompts_survive(write_rows):
    write_rows("rows.jsonl")
    assert load("rows.jsonl")[0][1] == {"prompt": [{"role": "user", "content": "question 1"}]}


def test_a_folder_holds_the_splits_by_file_name_and_other_files_do_not_matter(write_rows, here):
    write_rows("data/train-00000-of-00002.jsonl", 2)
    write_rows("data/train-00001-of-00002.jsonl", 3)
    write_rows("data/test.jsonl", 1)
    (here / "data" / "privileged_context.json").write_text("[]")
    (here / "data" / "README.md").write_text("text")
    train, evaluation = load("data", evaluate=True)
    assert (len(train), len(evaluation)) == (5, 1)


def test_splits_of_other_names_are_taken(write_rows):
    write_rows("data/fit.jsonl", 2)
    write_rows("data/dev.jsonl", 1)
    train, evaluation = load("data", evaluate=True, dataset_train_split="fit", dataset_test_split="dev")
    assert (len(train), len(evaluation)) == (2, 1)


def test_a_data_set_saved_to_disk_is_loaded(here):
    DatasetDict({"train": Dataset.from_list([{"prompt": "a"}])}).save_to_disk("saved")
    assert len(load("saved")[0]) == 1


def test_a_local_file_can_be_streamed(write_rows):
    write_rows("rows.jsonl")
    assert isinstance(load("rows.jsonl", dataset_streaming=True)[0], IterableDataset)


def test_a_mixture_is_loaded_by_trl(write_rows):
    paths = [str(write_rows("a.jsonl", 2)), str(write_rows("b.jsonl", 3))]
    train, _ = load(mixture=[{"path": "json", "data_files": path} for path in paths])
    assert len(train) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "no data set is given"),
        ("none.jsonl", r"'none.jsonl' does not exist \(looked in"),
        ("./none", "does not exist"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("text.md", "cannot read text.md"),
        ("folder", "Found: notes.md"),
        ("mixed", "of one type of"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(name, message, here, write_rows):
    (here / "empty.jsonl").touch()
    (here / "text.md").write_text("text")
    (here / "folder").mkdir()
    (here / "folder" / "notes.md").write_text("text")
    write_rows("mixed/train.jsonl")
    (here / "mixed" / "test.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match=message):
        load(name)


def test_a_file_without_rows_is_empty(here):
    (here / "rows.csv").write_text("prompt\n")
    with pytest.raises(DataError, match=r"'rows.csv' could not be loaded.*at least one row"):
        load("rows.csv")


def test_an_empty_split_from_the_hub_is_a_clear_error(here, monkeypatch):
    splits = DatasetDict({"train": Dataset.from_dict({"prompt": []})})
    monkeypatch.setattr("opd_trl.scripts.data_files.load_dataset", lambda *args, **kwargs: splits)
    with pytest.raises(DataError, match=r"split 'train' of somebody/something is empty"):
        load("somebody/something")


def test_a_broken_file_is_named(here):
    (here / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"'rows.jsonl' could not be loaded"):
        load("rows.jsonl")


def test_evaluation_without_a_test_split_says_what_to_do(write_rows):
    write_rows("rows.jsonl")
    with pytest.raises(DataError, match=r"no split 'test', it has 'train'.*dataset_test_split.*eval_strategy"):
        load("rows.jsonl", evaluate=True)


def test_two_sources_of_data_are_refused(write_rows):
    write_rows("rows.jsonl")
    with pytest.raises(DataError, match="both given"):
        load("rows.jsonl", mixture=[{"path": "a/b"}])


def test_a_hub_id_that_cannot_be_reached_is_a_clear_error(here, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/nothing' could not be loaded"):
        load("nobody/nothing")


def test_hub_ids_do_not_look_local():
    assert [looks_local(name) for name in ("squad", "trl-lib/tldr", "a/b/c", "~/x", "/x", "x.parquet")] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
