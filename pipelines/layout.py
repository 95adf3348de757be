"""Where each stage of a run keeps its output. The only file that knows the folder names."""

from __future__ import annotations

from dataclasses import dataclass

from fusionx.contract.files.storage import join


@dataclass(frozen=True)
class Layout:
    """Folders below a run's `output`. address: what a person is told instead of `root`, where that is a copy."""

    root: str
    address: str | None = None

    def told(self, path: str) -> str:
        """A path below `root` as a person finds it."""
        return path if self.address is None else join(self.address, path.removeprefix(self.root).lstrip("/"))

    @property
    def record(self) -> str:
        """The resolved config, and the commands."""
        return join(self.root, "config.json")

    @property
    def config_file(self) -> str:
        """The config of a run that was started from Python, for the command line."""
        return join(self.root, "run.yaml")

    @property
    def chunks(self) -> str:
        return join(self.root, "chunks")

    def logits(self, source: str) -> str:
        return join(self.root, "logits", source)

    def generated(self, source: str) -> str:
        return join(self.root, "generated", source)

    @property
    def generated_corpus(self) -> str:
        """The corpus with what the sources wrote."""
        return join(self.root, "generated", "corpus")

    def tokens(self, target: str) -> str:
        return join(self.root, "aligned", target, "tokens")

    def aligned(self, target: str, method: str, source: str) -> str:
        return join(self.root, "aligned", target, method, source)

    @property
    def trainings(self) -> str:
        return join(self.root, "train")

    def training(self, method: str, learning_rate: float, seed: int) -> str:
        return join(self.trainings, method, f"lr-{learning_rate:g}", f"seed-{seed}")

    def study(self, name: str) -> str:
        return join(self.root, "studies", name)

    def study_training(self, method: str, digest: str) -> str:
        """By content: studies that share a training share its folder."""
        return join(self.root, "studies", "trainings", f"{method}-{digest}")

    @property
    def evaluations(self) -> str:
        return join(self.root, "eval")

    def evaluation(self, *model: str) -> str:
        return join(self.evaluations, *model[:-1], f"{model[-1]}.json")

    def merged(self, method: str) -> str:
        return join(self.root, "merged", method)

    @property
    def benchmarks(self) -> str:
        return join(self.evaluations, "benchmarks.json")

    @property
    def model(self) -> str:
        """The recommended one."""
        return join(self.root, "model")

    @property
    def report(self) -> str:
        return join(self.root, "report")

    @property
    def timings(self) -> str:
        return join(self.root, "timings.json")
