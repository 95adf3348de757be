"""What a model is before anything is run with it, what the stages made of a text with it, and the way to the hub."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

import click

from fusionx.cli.options import config_argument, echo_line, examples, opened_pipeline, source_option

if TYPE_CHECKING:
    from fusionx.align.config import AlignMethod
    from fusionx.pipelines.publishing.uploads import Shards


class _Numbers(click.ParamType):
    """Two numbers with a colon between them; an end that is left out is the beginning or the end."""

    def __init__(self, name: str, defaults: tuple[int, int] | None = None) -> None:
        self.name, self._defaults = name, defaults

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if not isinstance(value, str):
            return cast("tuple[int, int]", value)
        found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", value)
        if found is None or (self._defaults is None and "" in found.groups()):
            self.fail(f"{value!r} is not of the form {self.name}", param, ctx)
        first, second = self._defaults or (0, 0)
        return int(found[1] or first), int(found[2] or second)


@click.group(epilog=examples("inspect model models/my-llm", "inspect shard run.yaml --part 3"))
def inspect() -> None:
    """Look into what a config names or a run has made, without running anything."""


@inspect.command(
    epilog=examples(
        "inspect model models/my-llm",
        "inspect model Qwen/Qwen2.5-0.5B --revision main --json",
        "inspect model hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf",
    )
)
@click.argument("path")
@click.option("--revision", help="Of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def model(path: str, revision: str | None, as_json: bool) -> None:
    """Sizes, tokens, licence, memory, and whether it can be source or target.

    PATH: a model folder, a hub id, a GGUF file, or hf://owner/repo/file.gguf. Loads no weights.
    """
    from fusionx.pipelines.model_description import describe_model

    found = describe_model(path, revision)
    click.echo(found.to_json() if as_json else found.table())


@inspect.command(
    epilog=examples(
        "inspect shard run.yaml",
        "inspect shard run.yaml --part 3 --row 10 --source coder --positions 20:40",
        "inspect shard run.yaml --chunk 17:0 --method fusionx --html chunk.html",
        "inspect shard run.yaml --json --positions : > chunk.json",
    )
)
@config_argument
@click.option("--part", type=click.IntRange(min=0), help="Number of the part: 3 is part-00003.parquet.")
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="Chunk of that part, from 0.")
@click.option("--chunk", "key", type=_Numbers("DOC:CHUNK"), help="Or the chunk by its document's and its own number.")
@source_option
@click.option(
    "--alignment",
    type=click.Choice(["walk", "mined", "exact"]),
    help="Whose result is shown; by default that which the method reads.",
)
@click.option("--method", metavar="NAME", help="Whose teacher is asked; by default the first trained one's.")
@click.option(
    "--positions",
    type=_Numbers("A:B", (0, 10**9)),
    default="0:16",
    show_default=True,
    help="Target tokens A to B - 1; `:` is all of them.",
)
@click.option("--top", type=click.IntRange(1, 1024), default=5, show_default=True, help="Entries of a distribution.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option("--html", "page", metavar="FILE", help="Write a page to FILE instead.")
def shard(
    config: str,
    overrides: tuple[str, ...],
    part: int | None,
    alignment: str | None,
    as_json: bool,
    page: str | None,
    **what: Any,
) -> None:
    """A chunk of a run: its text, and at each of the target's tokens what every candidate says of the next one.

    Before alignment and after it, with the exact probability of the text's own next token and, once a method with a
    teacher is trained, whom that listens to. Reads finished shards; runs no model.
    """
    if what["key"] is not None and (part is not None or what["row"]):
        raise click.UsageError("--chunk names the chunk; --part and --row name one, too.")
    if as_json and page is not None:
        raise click.UsageError("--json or --html, not both.")
    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        from fusionx.pipelines.inspection.chunk_lines import chunk_lines
        from fusionx.pipelines.inspection.chunk_page import write_chunk_page
        from fusionx.pipelines.inspection.chunk_view import chunk_of

        view = chunk_of(pipeline, part=part, alignment=cast("AlignMethod | None", alignment), **what)
        if as_json:
            click.echo(view.to_json())
        elif page is not None:
            write_chunk_page(view, page)
            click.echo(page)
        else:
            for line in chunk_lines(view):
                echo_line(line)


@click.command(
    epilog=examples(
        "push run.yaml me/my-fused-model --dry-run",
        "push run.yaml me/my-fused-model --shards aligned",
    )
)
@config_argument
@click.argument("repo_id")
@click.option(
    "--shards",
    type=click.Choice(["aligned", "logits"]),
    help="Also the candidates' shards, as a data set of the same name; whoever has its tokens can read the text.",
)
@click.option("--public", is_flag=True, help="Let everybody read it; without this only its owner does.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and contact nobody.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object of what is (or would be) sent.")
def push(
    config: str,
    overrides: tuple[str, ...],
    repo_id: str,
    shards: str | None,
    public: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send the recommended model and its card to the Hugging Face hub, as REPO_ID (OWNER/NAME).

    A push that was interrupted goes on when it is called again. Files of an earlier model that this one does not have
    are deleted there.
    """
    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        from fusionx.pipelines.publishing.push import push as push_all
        from fusionx.pipelines.publishing.uploads import planned_uploads

        uploads = planned_uploads(pipeline.config, pipeline.layout, repo_id, cast("Shards | None", shards))
        sizes = [upload.sizes() for upload in uploads]
        for upload, of_files in zip(uploads, sizes, strict=True):
            total = f"{len(of_files)} files, {sum(of_files.values()):,} bytes"
            click.echo(f"{upload.kind} {upload.repo_id}: {total}", err=True)
            if dry_run and not as_json:
                for name, size in of_files.items():
                    click.echo(f"{size:>16,}  {name}")
        addresses = [] if dry_run else push_all(uploads, public)
        if as_json:
            told = [
                {"kind": upload.kind, "repo_id": upload.repo_id, "files": of_files}
                for upload, of_files in zip(uploads, sizes, strict=True)
            ]
            click.echo(json.dumps({"uploads": told, "addresses": addresses}, ensure_ascii=False))
        else:
            for address in addresses:
                click.echo(address)
