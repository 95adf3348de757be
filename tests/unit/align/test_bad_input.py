"""Alignment of odd texts, odd vocabularies, and of shards that do not belong together, through the real stages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import AlignConfig, AlignMethod
from fusionx.align.positions import Status, align_positions
from fusionx.align.projection import project
from fusionx.align.tokens_stage import TokensStage
from fusionx.align.vocabulary.vocab_map import build_vocab_map
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import Distributions, read_distributions, read_tokens
from fusionx.contract.shards.manifest import Manifest, build_manifest, read_manifest, write_manifest
from fusionx.contract.shards.next_token import next_tokens
from fusionx.contract.shards.parts import Provenance, Ragged, inspect_part, part_name, read_part, write_part
from fusionx.contract.shards.schema import CHUNKS, text_hash
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage

TEXTS = [
    "The quick brown fox.",
    " \n\t ",  # no token at all for a source that drops white space
    "a\0b\0\0",
    "שלום עולם، مرحبا \u202bab\u202c",
    "e\u0301\u0300 n\u0303 \u1100\u1161\u11a8 \U0001f469\u200d\U0001f4bb",
    "</s><s>[UNK]<eos>",
    "x" * 300,
]


@pytest.fixture(autouse=True)
def _tokenizers_are_read_again() -> Iterator[None]:
    load_encoder.cache_clear()
    yield
    load_encoder.cache_clear()


def save_word_piece(folder: Path) -> Path:
    """No BOS, EOS or padding; lower case; white space dropped; letters, some words, and holes between their ids."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[UNK]", *letters, *("##" + letter for letter in letters), "the", "quick", "##own", ".", "é"]
    backend = Tokenizer(models.WordPiece({piece: 3 * rank for rank, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class World:
    """Chunks, and the folders of everything made of them."""

    root: Path

    def logits_stage(self, role: str, folder: str) -> LogitsStage:
        model = ModelConfig(id=role, path=str(self.root / role), kind="fake")
        config = PrecomputeConfig(k=4, device="cpu")
        return LogitsStage(model, config, str(self.root / "chunks"), str(self.root / folder))

    def tokens_stage(self) -> TokensStage:
        target = str(self.root / "target")
        splits = ["train", "validation"]
        return TokensStage("target", target, None, splits, str(self.root / "chunks"), str(self.root / "tokens"))

    def aligned_stage(self, method: AlignMethod = "walk", source: str = "source") -> AlignedStage:
        models = (("source", str(self.root / source), None), ("target", str(self.root / "target"), None))
        logits = "logits" if source == "source" else "target_logits"
        folders = (str(self.root / name) for name in (logits, "target_logits", "tokens", "aligned"))
        return AlignedStage(*models[0], *models[1], method, AlignConfig(), *folders)

    def part(self, folder: str) -> str:
        return str(self.root / folder / "part-00000.parquet")


def run(stage: Any) -> Manifest:
    """All of the stage's parts, and its manifest."""
    units, worker = stage.units(), stage.worker()
    provenance = stage.provenance(units[0])
    manifest = build_manifest(stage.kind, provenance.config, provenance.identity, [worker(unit) for unit in units])
    write_manifest(stage.output, manifest)
    return manifest


def write_chunks(root: Path, splits: list[str]) -> None:
    """All texts once in every split."""
    rows = {
        "doc_id": range(len(TEXTS)),
        "chunk": [0] * len(TEXTS),
        "text_hash": map(text_hash, TEXTS),
        "domain": ["odd"] * len(TEXTS),
        "text": TEXTS,
    }
    chunks = pa.table({name: list(values) for name, values in rows.items()}, schema=CHUNKS)
    entries = []
    for number, split in enumerate(splits):
        provenance = Provenance("chunks", split, {"block_size": 2048}, {})
        entries.append(write_part(str(root / "chunks" / part_name(number)), chunks, provenance, 0))
    write_manifest(str(root / "chunks"), build_manifest("chunks", {"block_size": 2048}, {}, entries))


def ready(root: Path) -> World:
    made = World(root)
    for stage in (made.logits_stage("source", "logits"), made.logits_stage("target", "target_logits")):
        run(stage)
    run(made.tokens_stage())
    return made


@pytest.fixture
def world(tmp_path: Path, make_tokenizer: Any) -> World:
    """Chunks, a source's and the target's shards and the target's tokens, ready to be aligned."""
    save_word_piece(tmp_path / "source")
    make_tokenizer(tmp_path / "target", 320, bos=True)
    write_chunks(tmp_path, ["train"])
    return ready(tmp_path)


@pytest.mark.parametrize("method", get_args(AlignMethod))
def test_odd_texts_are_aligned_where_both_sides_have_read_the_same_bytes(world: World, method: AlignMethod) -> None:
    stats = run(world.aligned_stage(method)).stats
    aligned, _ = read_part(world.part("aligned"), "aligned")
    logits, tokens = (read_part(world.part(kind), kind)[0] for kind in ("logits", "tokens"))
    source_ends, (target_ids, target_ends) = read_tokens(logits)[1], read_tokens(tokens)
    status, said = Ragged.from_column(aligned.column("status")), read_distributions(aligned)
    counts = Ragged(said.counts, status.offsets)
    for row, text in enumerate(TEXTS):
        assert len(status.row(row)) == len(target_ends.row(row))
        assert target_ends.row(row)[-1] == len(text.encode())
        exact = set(target_ends.row(row)[status.row(row) == Status.EXACT_BOUNDARY].tolist())
        both = set(target_ends.row(row).tolist()) & set(source_ends.row(row).tolist())
        # The walk answers what comes next, and there is nothing at the end of either side.
        assert exact == (both - {max([0, *source_ends.row(row).tolist()])} if method == "walk" else both)
        assert not counts.row(row)[status.row(row) == Status.NOT_ALIGNED].any()
    labels, _ = next_tokens(target_ids, target_ends)
    asked = np.bincount(status.values[labels >= 0], minlength=len(Status))
    assert stats["status"] == {"odd": {member.name.lower(): int(asked[member]) for member in Status}}
    if method == "walk":
        walked = status.values != Status.NOT_ALIGNED
        assert np.array_equal(walked, said.counts > 0)
        assert np.isin(status.values, [Status.INSIDE_TOKEN, Status.NOTHING_COMPATIBLE]).any()
        ids = np.split(said.ids, said.starts[1:-1])
        assert all(labels[at] in ids[at] for at in np.flatnonzero(walked)), "the next token is always kept"
    nothing = TEXTS.index(" \n\t ")
    assert len(source_ends.row(nothing)) == 0
    assert set(status.row(nothing).tolist()) == {Status.NOT_ALIGNED}
    assert aligned.column("nll_bytes")[nothing].as_py() == 0
    assert (status.row(0) == Status.EXACT_BOUNDARY).sum() > 2


def rewrite(path: str, kind: str, text: str) -> None:
    """Gives the part's first chunk the hash of another text, and makes the manifest vouch for the part."""
    table, provenance = read_part(path, kind)
    hashes = [text_hash(text), *table.column("text_hash").to_pylist()[1:]]
    column = table.schema.get_field_index("text_hash")
    tokens = inspect_part(path).entry.tokens
    entry = write_part(path, table.set_column(column, "text_hash", pa.array(hashes)), provenance, tokens)
    folder = str(Path(path).parent)
    manifest = read_manifest(folder, kind, "test")
    write_manifest(folder, build_manifest(kind, manifest.config, manifest.identity, [entry]))


@pytest.mark.parametrize("tampered", ["logits", "tokens", "target_logits"])
def test_another_text_stops_the_run_and_names_both_parts_and_both_hashes(world: World, tampered: str) -> None:
    rewrite(world.part(tampered), "tokens" if tampered == "tokens" else "logits", "another text")
    with pytest.raises(DataError, match="different texts") as caught:
        run(world.aligned_stage())
    details = caught.value.details
    hashes = dict.fromkeys(("logits", "tokens", "target_logits"), text_hash(TEXTS[0]))
    hashes[tampered] = text_hash("another text")
    other = "logits" if tampered == "tokens" else tampered
    assert details["file"] == f"{world.part('tokens')} and {world.part(other)}"
    assert details["found"] == f"{hashes[other]} in {world.part(other)}, (doc_id, chunk) (0, 0)"
    assert details["expected"] == f"{hashes['tokens']}, as in {world.part('tokens')}"
    assert details["remedy"]
    assert not (world.root / "aligned" / "part-00000.parquet").exists()


def test_a_part_that_changed_without_its_manifest_is_refused(world: World) -> None:
    manifest = Path(world.part("logits")).with_name("manifest.json")
    before = manifest.read_bytes()
    rewrite(world.part("logits"), "logits", "another text")
    manifest.write_bytes(before)
    with pytest.raises(DataError, match=r"(?s)SHA-256") as caught:
        run(world.aligned_stage())
    assert caught.value.details["file"] == world.part("logits")


@pytest.mark.parametrize(("role", "shards"), [("source", "logits"), ("target", "tokens")])
def test_another_tokenizer_stops_the_run_and_names_both_places_and_both_values(
    world: World, make_tokenizer: Any, role: str, shards: str
) -> None:
    stage = world.aligned_stage()
    stage.check()
    folder, manifest = world.root / role, world.root / shards / "manifest.json"
    before = load_encoder(str(folder)).fingerprint
    for file in folder.iterdir():
        file.unlink()
    make_tokenizer(folder, 290)
    load_encoder.cache_clear()
    with pytest.raises(DataError, match=f"the {role}, '{role}'") as caught:
        world.aligned_stage().check()
    details = caught.value.details
    assert details["file"] == f"{folder} and {manifest}"
    assert details["found"] == f"{load_encoder(str(folder)).fingerprint} in {folder}"
    assert details["expected"] == f"{before}, as in {manifest}"
    assert details["found"].split()[0] != before


def test_the_targets_own_shards_have_to_be_of_its_tokenizer(world: World) -> None:
    folder = str(world.root / "target_logits")
    manifest = read_manifest(folder, "logits", "test")
    identity = {**manifest.identity, "fingerprint": "another"}
    write_manifest(folder, build_manifest("logits", manifest.config, identity, manifest.parts))
    with pytest.raises(DataError, match="the target, 'target'") as caught:
        world.aligned_stage().check()
    assert caught.value.details["expected"] == f"another, as in {folder}/manifest.json"
    world.aligned_stage("mined").check()


def test_a_part_that_the_targets_own_shards_lack_is_named(world: World) -> None:
    folder = str(world.root / "target_logits")
    manifest = read_manifest(folder, "logits", "test")
    write_manifest(folder, build_manifest("logits", manifest.config, manifest.identity, []))
    with pytest.raises(DataError, match="do not cover") as caught:
        world.aligned_stage().units()
    assert caught.value.details["file"] == folder
    assert caught.value.details["found"] == "no part-00000.parquet"


@pytest.mark.parametrize("method", ["mined", "exact"])
def test_only_the_walk_asks_what_the_target_itself_expects(world: World, method: AlignMethod) -> None:
    shutil.rmtree(world.root / "target_logits")
    run(world.aligned_stage(method))
    with pytest.raises(DataError, match="target_logits"):
        world.aligned_stage("walk").units()


@pytest.mark.parametrize("method", get_args(AlignMethod))
def test_a_tokenizer_onto_itself_asks_nothing_and_changes_no_entry(world: World, method: AlignMethod) -> None:
    (unit,) = world.aligned_stage(method, source="target").units()
    assert unit.inputs.keys() == {"logits", "tokens"}
    run(world.aligned_stage(method, source="target"))
    aligned, own = (
        read_part(world.part(kind), kind.removeprefix("target_"))[0] for kind in ("aligned", "target_logits")
    )
    found, wanted = read_distributions(aligned), read_distributions(own)
    labels, sizes = next_tokens(*read_tokens(own))
    asked = (sizes > 0 if method == "walk" else np.ones(len(labels), bool)) & (found.counts > 0)
    assert asked[labels >= 0].mean() > 0.9
    (ids, logs), (own_ids, own_logs) = ([array[asked] for array in said.padded(4)] for said in (found, wanted))
    # The walk keeps the text's own token: if it must, in place of the last entry.
    same = ids == own_ids
    assert same[:, :3].all()
    assert (same[:, 3] | ((ids[:, 3] == labels[asked]) if method == "walk" else False)).all()
    np.testing.assert_allclose(logs[same], own_logs[same], atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("method", get_args(AlignMethod))
@pytest.mark.parametrize("splits", [["train", "validation", "train"], ["train", "train"]])
def test_what_alignment_costs_is_measured_on_validation_or_else_on_everything(
    method: AlignMethod, splits: list[str], tmp_path: Path, make_tokenizer: Any
) -> None:
    save_word_piece(tmp_path / "source")
    make_tokenizer(tmp_path / "target", 320, bos=True)
    write_chunks(tmp_path, splits)
    manifest = run(ready(tmp_path).aligned_stage(method))
    measured = {"fidelity", "calibration", "own_calibration"}
    judged = [measured <= part.stats.keys() for part in manifest.parts]
    assert judged == [split == "validation" or "validation" not in splits for split in splits]
    assert all(part.stats.keys() == {"status"} for part, is_judged in zip(manifest.parts, judged, strict=True)
               if not is_judged)  # fmt: skip
    part = manifest.parts[judged.index(True)].stats
    (of_domain,) = part["fidelity"].values()
    labels, _ = next_tokens(*read_tokens(read_part(str(tmp_path / "tokens" / part_name(0)), "tokens")[0]))
    assert 0 < of_domain["gold_positions"] <= (labels >= 0).sum()
    assert sum(row["found"] for row in part["calibration"].values()) == of_domain["gold_positions"]


def test_ids_of_a_padded_head_go_to_the_tail(world: World) -> None:
    """A head may be larger than its tokenizer, and a vocabulary may have holes."""
    source, target = (load_encoder(str(world.root / role)).table for role in ("source", "target"))
    hole, token = 1, source.token_bytes.index(b".")
    assert source.token_bytes[hole] is None
    ids = np.array([[source.size + 40, token, hole]], np.int32)
    logprobs = np.log(np.array([[0.5, 0.25, 0.125]]))
    shown = Distributions.from_padded(ids, logprobs, np.array([3], np.uint16), np.array([0.125]))
    found, probs = project(shown, np.array([0]), build_vocab_map(source, target, "exact"), 4)
    assert found.ids.tolist() == [target.token_bytes.index(b".")]
    assert probs == pytest.approx([0.25], abs=1e-3)
    assert found.tail == pytest.approx([0.75], abs=1e-3)


def encoders(folder: Path, make_tokenizer: Any) -> tuple[Encoder, Encoder]:
    made = make_tokenizer(folder / "source", 340, words=False), make_tokenizer(folder / "target", 300)
    return load_encoder(str(made[0])), load_encoder(str(made[1]))


@pytest.mark.parametrize("text", ["abcdefghij" * 100_000, "quick" * 200_000, "你好" * 170_000, "\0" * 1_000_000])
def test_one_megabyte_without_a_space(text: str, tmp_path: Path, make_tokenizer: Any) -> None:
    source, target = encoders(tmp_path, make_tokenizer)
    vocab_map = build_vocab_map(source.table, target.table, "mined")
    start = time.process_time()
    (from_source,), (to_target,) = source.encode([text]), target.encode([text])
    index, status = align_positions(
        from_source.ends, from_source.ids, to_target.ends, to_target.ids, source.table, target.table, vocab_map
    )
    assert time.process_time() - start < 10
    assert status[-1] == Status.EXACT_BOUNDARY
    exact = status == Status.EXACT_BOUNDARY
    assert np.array_equal(from_source.ends[index[exact]], to_target.ends[exact])


def test_a_lone_surrogate_never_reaches_a_tokenizer(tmp_path: Path, make_tokenizer: Any) -> None:
    for encoder in encoders(tmp_path, make_tokenizer):
        with pytest.raises(ValueError, match="surrogate"):
            encoder.encode(["ok", "bad \udfff"])
