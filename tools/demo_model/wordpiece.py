"""WordPiece over the paraphrases' text; the tokenizer files that loaders of BERT expect."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from model_files import write_json
from paraphrases import training_pair

PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
VOCAB_SIZE = 1200


def train(seed: int, num_pairs: int = 20_000) -> Tokenizer:
    """The same arguments give the same tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False)
    rng = Random(f"wordpiece {seed}")
    pairs = (training_pair(rng) for _ in range(num_pairs))
    tokenizer.train_from_iterator((text for pair in pairs for text in (pair.first, pair.second)), trainer)
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
