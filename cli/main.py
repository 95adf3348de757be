"""`fusionx`: all commands under one name.

Imports nothing heavy before a command is chosen, so that `fusionx --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, NoReturn

import click

from fusionx.cli import demo, inspection, models, preparation, reports, shell, stages
from fusionx.cli.options import examples
from fusionx.contract.errors import EXIT_INCOMPLETE, FusionXError
from fusionx.contract.files.escaping import visible
from fusionx.pipelines.execution.interruption import UNIT_THREAD


def _end(ctx: click.Context, error: FusionXError) -> NoReturn:
    click.echo(f"error: {visible(str(error))}", err=True)
    ctx.exit(error.exit_code)


class _Main(click.Group):
    """Turns the project's errors into a message and an exit code, never a traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except SystemExit as end:
            if any(thread.name == UNIT_THREAD for thread in threading.enumerate()):
                # A stopped command's unit is still being computed. Python, as it shuts down, would end its thread
                # inside a native library, which aborts the process: exit code 134 instead of ours.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else EXIT_INCOMPLETE)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FusionXError as error:
            _end(ctx, error)
        except OSError as error:
            from fusionx.contract.files.storage import told_by_the_system

            told = told_by_the_system(error)
            if told is None:
                raise
            _end(ctx, told)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a run, not of the alphabet


@click.group(
    cls=_Main,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("run configs/demo.yaml", "status configs/demo.yaml"),
)
@click.version_option(package_name="fusionx", prog_name="fusionx", message="%(prog)s %(version)s")
def main() -> None:
    """Fusion-X: make one language model learn what several others know.

    Every stage reads one CONFIG.yaml and skips what is done and valid. Exit codes: 0 complete, 1 incomplete or bad
    data, 2 bad usage or config, 75 stopped by a signal (all finished work is saved).
    """
    # Whatever Python a command starts (torchrun's processes, loaders' workers) imports nothing from the folder that
    # the user happens to be in: a file train.py or torch.py there is the user's own.
    os.environ["PYTHONSAFEPATH"] = "1"
    if not sys.stderr.isatty():  # libraries' bars, which redraw their line, are one endless line in a log
        os.environ.setdefault("TQDM_DISABLE", "1")


for _command in (
    preparation.init,
    preparation.shipped_files,
    preparation.doctor,
    preparation.schema,
    stages.chunk,
    stages.precompute,
    stages.align,
    stages.generate,
    inspection.explain,
    stages.train,
    stages.evaluate,
    stages.run,
    inspection.status,
    inspection.plan,
    models.inspect,
    models.push,
    reports.report,
    reports.study,
    reports.bench,
    demo.demo_inputs,
    demo.real_inputs,
    shell.completion,
):
    main.add_command(_command)
