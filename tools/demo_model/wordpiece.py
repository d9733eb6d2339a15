"""WordPiece over the paraphrases' text; the tokenizer files that loaders of BERT expect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_files import write_json
from paraphrases import training_pair

PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
VOCAB_SIZE = 1200


def train(seed: int, num_pairs: int = 20_000) -> Tokenizer:
    """The characters and the commonest words; the same arguments give the same tokenizer, byte for byte.

    tokenizers' own WordPieceTrainer gives another vocabulary each time.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    rng = Random(f"wordpiece {seed}")
    counts: Counter[str] = Counter()
    for _ in range(num_pairs):
        text = normalizer.normalize_str(" ".join(training_pair(rng)[:2]))
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    characters = sorted({character for word in counts for character in word})
    common = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    entries = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *common][:VOCAB_SIZE]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", pair=f"{START} $A {END} $B:1 {END}:1", special_tokens=ends
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id))
    config = {
        "clean_up_tokenization_spaces": True,
        "cls_token": START,
        "do_lower_case": True,
        "mask_token": MASK,
        "model_max_length": max_length,
        "pad_token": PAD,
        "sep_token": END,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": UNKNOWN,
    }
    write_json(folder / "tokenizer_config.json", config)
