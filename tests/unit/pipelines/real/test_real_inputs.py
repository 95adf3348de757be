"""The real trio's inputs: which documents a run gets, what is kept, what is refused. Without a network."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionx.contract.config import load_config
from fusionx.contract.errors import ConfigError
from fusionx.contract.files import done_marks
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.real import inputs
from fusionx.pipelines.real.config import RealCorpusConfig, RealInputs
from fusionx.pipelines.real.inputs import choose, make_inputs

ROOT = Path(__file__).resolve().parents[4]
CORPUS = RealCorpusConfig(
    domains=["english", "python", "dutch"], train_kb=3, validation_kb=1, test_kb=2, absent_from_train=["dutch"]
)


@pytest.fixture
def gathered(tmp_path: Path) -> Path:
    """Documents of 600 bytes, five of each of four domains and split, the domains taking turns."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        domains = ["english", "python", "dutch", "german"] * 5
        texts = [f"{split} {number:03}".ljust(600, ".") for number in range(len(domains))]
        pq.write_table(pa.table({"text": texts, "domain": domains}), folder / f"{split}.parquet")
    done_marks.write_mark(folder, "digest", list(folder.iterdir()))
    return folder


def chosen(folder: Path, split: str) -> list[tuple[str, str]]:
    table = pq.read_table(folder / f"{split}.parquet").to_pydict()
    return list(zip(table["domain"], table["text"], strict=True))


def test_each_domain_gives_its_first_documents_until_they_are_enough(gathered: Path, tmp_path: Path) -> None:
    said = choose(CORPUS, gathered, tmp_path / "sample")
    counts = {}
    for split in ("train", "validation", "test"):
        rows = chosen(tmp_path / "sample", split)
        counts[split] = {domain: sum(row[0] == domain for row in rows) for domain in dict(rows)}
        everything = chosen(gathered, split)
        assert rows == [row for row in everything if row in rows], "in their order"
        assert rows[0] == everything[0]
    assert counts == {
        "train": {"english": 5, "python": 5},
        "validation": {"english": 2, "python": 2, "dutch": 2},
        "test": {"english": 4, "python": 4, "dutch": 4},
    }
    assert said == "3 domains, 7 KB for test, 6 KB for train, 4 KB for validation"


def test_a_sample_is_kept_until_config_or_text_changes(gathered: Path, tmp_path: Path) -> None:
    piece = tmp_path / "sample"

    def written() -> int:
        return (piece / "train.parquet").stat().st_mtime_ns

    choose(CORPUS, gathered, piece)
    first = written()
    choose(CORPUS, gathered, piece)
    assert written() == first
    choose(CORPUS.model_copy(update={"train_kb": 1}), gathered, piece)
    second = written()
    assert second != first
    (gathered / "train.parquet").write_bytes((gathered / "test.parquet").read_bytes())
    done_marks.write_mark(gathered, "digest", list(gathered.glob("*.parquet")))
    choose(CORPUS.model_copy(update={"train_kb": 1}), gathered, piece)
    assert written() != second


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("corpus.absent_from_train=[cpp]", "names no domain of this corpus: cpp"),
        ("corpus.domains=[english, english]", "listed twice"),
        ("corpus.domains=[dutch, javascript]", "nothing is left to train on"),
        ("corpus.domains=[klingon]", "klingon"),
        ("corpus.test_kb=25", "24"),
        ("models=[llama]", "smollm2"),
    ],
)
def test_what_cannot_be_gathered_is_refused_before_anything_is_fetched(change: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load_config(RealInputs, ROOT / "configs" / "inputs" / "real.yaml", [change])


def test_models_and_text_are_made_in_order_and_named_with_their_licences(
    gathered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    monkeypatch.setattr(inputs, "check_installed", lambda names, home: made.append("checked"))
    monkeypatch.setattr(inputs, "model_folder", lambda name, home: made.append(name) or home / "models" / name)
    monkeypatch.setattr(inputs, "real_text", lambda home: made.append("text") or gathered)
    make_inputs(RealInputs(output=str(tmp_path), models=["gemma", "smollm2"], corpus=CORPUS))
    assert made == ["checked", "gemma", "smollm2", "text"]
    said = capsys.readouterr().out
    assert "Gemma terms" in said
    assert "Apache-2.0" in said
    assert str(tmp_path) in said.splitlines()[-1]


def test_the_run_reads_what_the_inputs_make() -> None:
    made = load_config(RealInputs, ROOT / "configs" / "inputs" / "real.yaml")
    run = load_config(FusionConfig, ROOT / "configs" / "real.yaml")
    assert {model.path for model in run.models} == {f"{made.output}/models/{name}" for name in made.models}
    assert run.corpus.path == f"{made.output}/sample"
    assert len(made.corpus.domains) - len(made.corpus.absent_from_train) >= 8
    assert len(made.corpus.absent_from_train) == 2
    assert run.train.method("fusellm-walk").alignment == "walk"
    assert run.train.method("fusellm").alignment == "mined"
