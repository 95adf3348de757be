"""A run's own model, card and shards on their way to a stand-in of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hub_stand_in import hub_stand_in

from fusionx.cli.main import main


def test_what_a_run_recommends_arrives_and_can_be_loaded(world: Any, finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command = ["push", str(world.config), "me/tiny", "--set", f"output={finished}", "--shards", "aligned"]
    with hub_stand_in() as hub:
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        folder = hub.save("model", "me/tiny", tmp_path / "fetched")
        assert ("dataset", "me/tiny") in hub.repositories
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The quick brown fox", return_tensors="pt").input_ids
    own = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert model(ids).logits.equal(own(ids).logits)
