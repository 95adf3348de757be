"""A chunk of a conversation: what is shown are the tokens of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from chat_models import conversation, save_chat_model
from click.testing import CliRunner

from fusionx.cli.main import main


def test_of_a_conversation_the_answers_tokens_are_shown(tmp_path: Path) -> None:
    save_chat_model(tmp_path / "target", "chatml", "llama", 0)
    (tmp_path / "corpus").mkdir()
    messages = conversation([("What is it?", "A day."), ("And now?", "Night, it fell.")])
    (tmp_path / "corpus" / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    config: dict[str, Any] = {
        "name": "chat",
        "output": str(tmp_path / "out"),
        "target": {"id": "target", "path": str(tmp_path / "target")},
        "corpus": {"path": str(tmp_path / "corpus"), "format": "chat"},
        "chunk": {"block_size": 250},
        "precompute": {"k": 4, "splits": ["train"]},
        "executor": {"kind": "inline"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))

    def run(*command: str) -> str:
        done = CliRunner().invoke(main, [*command, str(tmp_path / "run.yaml")])
        assert done.exit_code == 0, done.output
        return done.stdout

    for stage in ("chunk", "precompute", "align"):
        run(stage)
    found = json.loads(run("inspect", "shard", "--json", "--chunk", "0:1", "--positions", ":"))
    answer = messages[-1]["content"]
    assert found["text"].endswith(f"user: And now?\n\nassistant: {answer}")
    assert "".join(place["text"] for place in found["positions"]) == answer
    assert all(place["opinions"][0]["aligned"] is not None for place in found["positions"])
