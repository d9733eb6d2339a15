"""Tiny tokenizers of both kinds: byte-level (GPT-2, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 2)."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rtp_llm.config import DEMO_MODEL

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln, 你好世界, привет мир, 🙂🙃 and 👩‍👩‍👧!",
    "def main():\n    return 'x' * 3\n",
]


def write_tokenizer(directory: Path, backend: Tokenizer, **config: Any) -> Path:
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def byte_level(directory: Path) -> Path:
    """Ids 0–2 are <s>, </s> and <|im_start|>; encoding puts <s> first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken("added word", special=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return write_tokenizer(directory, backend, bos_token="<s>", eos_token={"__type": "AddedToken", "content": "</s>"})


def sentencepiece(directory: Path) -> Path:
    """Words with ▁ for a space, and a token for each byte."""
    words = ["▁The", "▁quick", "▁brown", "▁fox", "▁", "fox", "s"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return write_tokenizer(directory, backend, bos_token="<s>")


def with_bos(directory: Path) -> Path:
    """The demo model, whose tokenizer puts <|endoftext|>, id 0, first."""
    shutil.copytree(DEMO_MODEL, directory, ignore=shutil.ignore_patterns("draft", "moe", "embedding", "adapters"))
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    backend.save(str(directory / "tokenizer.json"))
    return directory
