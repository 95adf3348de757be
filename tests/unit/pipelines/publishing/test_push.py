"""What a push would send, what it refuses to, and what arrives at a stand-in of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hub_stand_in import TOKEN, Hub, hub_stand_in
from shard_builder import random_parts, write_aligned, write_logits, write_tokens

from fusionx.cli.main import main
from fusionx.contract.files.sealed import seal_folder
from fusionx.contract.shards.rows import read_shards

CARD = "---\nlibrary_name: transformers\n---\n\n# target after fusionx\n\nBits per byte 1.2/1.1; see https://a.b/c/d.\n"
WEIGHTS = b"\x08\0\0\0\0\0\0\0{}      " * 50


def write_model(folder: Path, card: str = CARD, **files: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {"model.safetensors": WEIGHTS, "config.json": b"{}", "tokenizer.json": b"{}", **files}.items():
        (folder / name).write_bytes(data)
    seal_folder(folder)
    (folder / "README.md").write_text(card)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder and its config beside it."""
    output = tmp_path / "runs" / "mine"
    write_model(output / "model")
    parts = random_parts([4, 3], ["target", "coder"])
    write_tokens(output / "aligned" / "target" / "tokens", parts)
    for name in ("target", "coder"):
        write_aligned(output / "aligned" / "target" / "walk" / name, parts, name)
        write_logits(output / "logits" / name, parts, name)
    models = {name: {"id": name, "path": str(tmp_path / "models" / name)} for name in ("target", "coder")}
    config = {"name": "mine", "output": str(output), "target": models["target"], "sources": [models["coder"]]}
    config |= {"corpus": {"path": str(tmp_path / "texts")}, "executor": {"kind": "inline"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return output


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stand_in() as made:
        yield made


def push(run: Path, *options: str, repo: str = "me/fused") -> Result:
    return CliRunner().invoke(main, ["push", str(run.parent.parent / "run.yaml"), repo, *options])


def test_a_dry_run_lists_what_would_be_sent_and_contacts_nobody(run: Path, hub: Hub) -> None:
    done = push(run, "--dry-run", "--shards", "aligned")
    assert done.exit_code == 0, done.output
    assert hub.requests == []
    listed = dict(reversed(line.split()) for line in done.stdout.splitlines())
    model = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    parts = {"manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"}
    shards = {f"{name}/{part}" for name in ("tokens", "target", "coder") for part in parts}
    assert {*listed} == model | shards
    assert listed["model.safetensors"] == f"{len(WEIGHTS):,}"
    assert f"model me/fused: 4 files, {sum((run / 'model' / name).stat().st_size for name in model):,}" in done.stderr
    assert "dataset me/fused: 13 files" in done.stderr


def test_programs_read_what_is_sent_as_json(run: Path, hub: Hub) -> None:
    told = json.loads(push(run, "--dry-run", "--json").stdout)
    (upload,) = told["uploads"]
    assert (upload["kind"], upload["repo_id"], told["addresses"]) == ("model", "me/fused", [])
    assert upload["files"]["model.safetensors"] == len(WEIGHTS)
    sent = json.loads(push(run, "--json").stdout)
    assert sent == {**told, "addresses": [f"{hub.address}/me/fused"]}


def test_the_model_arrives_private_and_whole_and_is_not_sent_twice(run: Path, hub: Hub) -> None:
    done = push(run)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{hub.address}/me/fused\n"
    (found,) = hub.repositories.values()
    assert found.private
    assert found.files == {
        file.name: file.read_bytes() for file in (run / "model").iterdir() if file.name != "sealed.json"
    }
    assert hub.sent == len(WEIGHTS)
    again = push(run)
    assert again.exit_code == 0, again.output
    assert (hub.sent, found.commits) == (len(WEIGHTS), 1)


def test_weights_of_an_earlier_model_do_not_stay(run: Path, hub: Hub) -> None:
    (run / "model" / "sealed.json").unlink()
    write_model(run / "model", **{"model-00002-of-00002.safetensors": b"old", "extra.json": b"1"})
    assert push(run).exit_code == 0
    for name in ("model-00002-of-00002.safetensors", "extra.json"):
        (run / "model" / name).unlink()
    seal_folder(run / "model")
    assert push(run).exit_code == 0
    (found,) = hub.repositories.values()
    assert "model-00002-of-00002.safetensors" not in found.files
    assert "extra.json" in found.files, "what else somebody put there is theirs"


@pytest.mark.parametrize("kind", ["aligned", "logits"])
def test_shards_arrive_as_a_data_set_that_datasets_loads(kind: str, run: Path, hub: Hub, tmp_path: Path) -> None:
    done = push(run, "--shards", kind, "--public")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [f"{hub.address}/me/fused", f"{hub.address}/datasets/me/fused"]
    assert not hub.repositories["dataset", "me/fused"].private
    folder = hub.save("dataset", "me/fused", tmp_path / "fetched")
    own = run / "logits" / "coder" if kind == "logits" else run / "aligned" / "target" / "walk" / "coder"
    rows = [(row["doc_id"], row["chunk"]) for row in read_shards(str(own), "train")]
    assert [(row["doc_id"], row["chunk"]) for row in read_shards(str(folder / "coder"), "train")] == rows
    import datasets

    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(folder), "coder", split="train", cache_dir=cache)
    assert list(zip(loaded["doc_id"], loaded["chunk"], strict=True)) == rows
    if kind == "aligned":
        tokens = datasets.load_dataset(str(folder), "tokens", split="train", cache_dir=cache)
        assert list(zip(tokens["doc_id"], tokens["chunk"], strict=True)) == rows
    names = datasets.get_dataset_config_names(str(folder))
    assert sorted(names) == sorted(["coder", "target", *(["tokens"] if kind == "aligned" else [])])


@pytest.mark.parametrize(
    ("breakage", "code", "said", "remedy"),
    [
        ("no model", 1, "no recommended model", "fusionx eval"),
        ("damaged", 1, "A file is damaged", "model.safetensors"),
        ("no card", 1, "The model has no card.", "fusionx eval"),
        ("no token", 2, "There is no login token", "hf auth login"),
        ("no shards", 1, "An input is missing or unfinished.", "fusionx precompute"),
        ("damaged shards", 1, "A part differs from its manifest.", "part-00001.parquet"),
        ("offline", 2, "The hub cannot be reached.", "--dry-run needs none"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    breakage: str, code: int, said: str, remedy: str, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    if breakage == "no model":
        (run / "model" / "sealed.json").unlink()
    elif breakage == "damaged":
        (run / "model" / "model.safetensors").write_bytes(WEIGHTS[:-1])
    elif breakage == "no card":
        (run / "model" / "README.md").unlink()
    elif breakage == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "nothing"))
    elif breakage == "no shards":
        (run / "logits" / "coder" / "manifest.json").unlink()
    elif breakage == "damaged shards":
        (run / "logits" / "coder" / "part-00001.parquet").write_bytes(b"x")
    elif breakage == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = push(run, "--shards", "logits")
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert remedy in done.stderr
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("file", "text", "path"),
    [
        ("README.md", "Trained in /home/somebody/runs.", "/home/somebody/runs."),
        ("README.md", "Text: ~/texts/mine", "~/texts/mine"),
        ("README.md", "from RUN/model", "RUN"),
        ("README.md", "Sources: MODELS/coder, of", "MODELS/coder"),
        ("config.json", '{"_name_or_path": "MODELS/target"}', "MODELS/target"),
    ],
)
def test_no_path_of_this_machine_leaves_it(
    file: str, text: str, path: str, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent.parent)
    names = {"RUN": str(run), "MODELS": str(run.parent.parent / "models")}
    for name, value in names.items():
        text, path = text.replace(name, value), path.replace(name, value)
    (run / "model" / file).write_text(text)
    seal_folder(run / "model")
    done = push(run, "--dry-run")
    assert done.exit_code == 1, done.output
    assert "names a path of this machine" in done.stderr
    assert f"found:    {path}\n" in done.stderr
    assert str(run / "model" / file) in done.stderr


@pytest.mark.parametrize(
    "repo", ["fused", "me/fused/more", "me/../fused", "/etc", "me/", "me/a b", "me/" + "x" * 200, ""]
)
def test_a_name_that_is_no_repository_is_refused(repo: str, run: Path, hub: Hub) -> None:
    done = push(run, repo=repo)
    assert done.exit_code == 2, done.output
    assert "This cannot be a repository of the hub." in done.stderr
    assert hub.requests == []


def test_a_repository_that_everybody_can_read_is_used_only_if_that_is_meant(run: Path, hub: Hub) -> None:
    assert push(run, "--public").exit_code == 0
    before = dict(hub.repositories["model", "me/fused"].files)
    (run / "model" / "README.md").write_text(CARD + "more\n")
    refused = push(run)
    assert refused.exit_code == 2
    assert "everybody can read it" in refused.stderr
    assert hub.repositories["model", "me/fused"].files == before
    assert push(run, "--public").exit_code == 0
    assert hub.repositories["model", "me/fused"].files["README.md"].endswith(b"more\n")


@pytest.mark.parametrize(
    ("request_", "status", "code", "said"),
    [
        ("repos/create", 401, 2, "does not accept the login token"),
        ("repos/create", 403, 2, "may not write to this repository"),
        ("repos/create", 500, 1, "did not take an upload"),
        ("commit/main", 500, 1, "did not take an upload"),
    ],
)
def test_what_the_hub_answers_is_told(request_: str, status: int, code: int, said: str, run: Path, hub: Hub) -> None:
    hub.failures[request_] = [status]
    done = push(run)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert str(status) in done.stderr
    assert "Traceback" not in done.output
    assert TOKEN not in done.output
    again = push(run)
    assert again.exit_code == 0, again.output
    assert hub.sent == len(WEIGHTS), "weights that had arrived are not sent again"


def test_a_wrong_token_is_told(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = push(run)
    assert done.exit_code == 2, done.output
    assert "does not accept the login token" in done.stderr
    assert "hf_wrong" not in done.output


def test_the_librarys_streamed_upload_takes_the_same_calls(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of an installed hf_xet; of files that are small enough to need no Xet storage, which is not stood in for."""
    pytest.importorskip("hf_xet")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.large = ()
    for _ in range(2):
        done = push(run, "--shards", "aligned")
        assert done.exit_code == 0, done.output
    found = hub.repositories["model", "me/fused"]
    assert found.files["model.safetensors"] == WEIGHTS
    assert found.commits == 1
    assert "coder/part-00000.parquet" in hub.repositories["dataset", "me/fused"].files


def test_the_stand_in_refuses_bytes_that_are_not_what_they_are_called(hub: Hub) -> None:
    from huggingface_hub.utils import get_session

    assert get_session().put(f"{hub.address}/objects/{'0' * 64}", content=b"x").status_code == 400
    assert json.loads(get_session().get(f"{hub.address}/api/models/me/x").text)["error"] == "Invalid credentials"
