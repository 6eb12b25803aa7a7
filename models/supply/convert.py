"""Turns a GGUF file into what the transformers engine loads: `python -m models.supply.convert SOURCE.gguf FOLDER`.

A GGUF is one file in llama.cpp's names and packed blocks. Unpacking it takes longer than everything else at a start, so it
is done once, into the cache: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and
`tokenizer_config.json`, which carries the chat template; and, where the GGUF has blocks that a CPU multiplies with as they are,
these too, as `packed.safetensors` (`models/language/decoding/packed.py`). It runs in a process of its own, because it needs torch, which the
gateway never imports, and twice the model's memory, which so goes back.

The folder exists and is empty; whoever asks for a conversion moves the folder into place. The process ends with 0, or with
1 and one line on stderr.
"""

import argparse
import io
import logging
import struct
import sys
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

import gguf
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict, read_gguf_metadata

from models.errors import BadInput, BatonError
from models.language.decoding.packed import KINDS, PackedMatrix, write_packed

_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""llama.cpp's names of the splits in which every digit is a word of its own."""

_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""transformers' names of special tokens, and llama.cpp's."""


def convert(source: Path, folder: Path) -> None:
    """Write the model in `source` into `folder`, its weights as bfloat16.

    That rounds a weight by 1/512 at most, far less than the few bits a GGUF keeps of it, and halves the folder.

    Raises:
        BadInput: the file is no GGUF, or has no chat template.
    """
    try:
        metadata, _ = read_gguf_metadata(str(source))
    except (ValueError, IndexError, struct.error) as exc:
        raise BadInput(f"It is not a whole GGUF file ({exc}). Fetch it again.") from exc
    if "tokenizer.chat_template" not in metadata:
        raise BadInput("It has no chat template, so it cannot hold a conversation. Choose an instruction-tuned model.")
    place = str(source.parent)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place, gguf_file=source.name, local_files_only=True)
    for name, key in _SPECIAL_TOKENS.items():  # chat templates write some of them; transformers 5.17 mistakes the end
        if (token := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    if metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        # transformers splits these as GPT-2 does, where a number takes the space before it along; after two or more
        # spaces the model would be given tokens that it was never trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=source.name,
        local_files_only=True,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    model.save_pretrained(folder)
    if blocks := _blocks(source, model):
        write_packed(folder, blocks)


def _blocks(source: Path, model: PreTrainedModel) -> dict[str, PackedMatrix]:
    """Return the blocks of the matrices of `model`, by its names: of those whose kind is kept, and which it agrees with."""
    header = GgufHeader.from_file(str(source))
    stored = load_gguf_state_dict(header)
    architectures = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in architectures:
        return {}
    names = gguf.get_tensor_name_map(architectures[header.architecture], model.config.num_hidden_layers)
    blocks = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        key = names.get_name(name, try_suffixes=(".weight",))
        if key not in stored and weight is model.get_input_embeddings().weight:
            key = "token_embd.weight"  # the head has no name of its own where it is the embedding
        if name == "model.embed_tokens.weight" or key not in stored:
            continue
        kind = gguf.GGMLQuantizationType(stored[key].ggml_type).name
        if kind not in KINDS:
            continue
        found = PackedMatrix(kind=kind, data=stored[key][...])
        for rows in _orders(name, model):
            ordered = found if rows is None else PackedMatrix(kind=kind, data=found.data[rows].contiguous())
            # What transformers made of it says how the rows lie; where nothing fits, the matrix stays as it made it.
            if torch.equal(ordered.dense().to(weight.dtype), weight):
                blocks[name] = ordered
                break
    return blocks


def _orders(name: str, model: PreTrainedModel) -> list[Tensor | None]:
    """Return how the rows of a matrix may have to be ordered: as they are, or as llama.cpp interleaves rotary halves."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return [None]
    rows = torch.arange(model.get_parameter(name).shape[0])
    return [None, rows.view(heads, -1, 2).transpose(1, 2).reshape(-1)]


def main(arguments: list[str]) -> int:
    """Convert as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.supply.convert", description="Convert a GGUF file for transformers."
    )
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="an empty folder")
    args = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in ("GGUFReader", "get_tensor_name_map"):
        # transformers asks gguf for the same several times over, and each takes seconds: half of all the time.
        setattr(gguf, name, cache(getattr(gguf, name)))
    try:
        with redirect_stderr(io.StringIO()):  # progress bars are not the line that explains
            convert(args.source, args.folder)
    except BatonError as exc:
        return _fail(f"{args.source} cannot be converted. {exc.message}")
    except Exception as exc:  # noqa: BLE001  # the file is foreign and so is its reader: whatever it says is the reason
        return _fail(f"{args.source} cannot be converted: {type(exc).__name__}: {' '.join(str(exc).split())}")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
