"""Trains the tiny embedding model: `python tools/demo_model/embedding.py --out rtp_llm/demo/embedding`."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import model_files
import options
import wordpiece
from card import Card
from loop import Outcome, fit
from paraphrases import SORTS, held_out, training_pair
from targets import mixed_precision
from workers import stream

MAX_BYTES = 2_000_000
MAX_LENGTH = 128
LENGTH = 48  # tokens a training row at most; no sentence of the generator has more
TEMPERATURE = 0.05
_ABOUT = """A tiny sentence embedding model (BERT architecture, {millions:.2f} M parameters, fp32, 128 numbers a sentence): the mean over
the last hidden states, normalised. Sentences of the demo model's generator that say the same in other words lie
nearest to each other: facts told, facts asked for, sums, requests. Elsewhere it means nothing.

`transformers` loads it as `AutoModel`, `sentence-transformers` as it is.
"""
_EVALUATION = """Share of held-out sentences whose nearest neighbour (cosine) among all {num} is their own paraphrase; the sorts are
mixed. No held-out sentence can come from the training generator.

{table}
"""


class PairBatch(NamedTuple):
    tokens: Any  # int64 [2 · pairs, length], padded with 0; all first sentences, then all second ones; length <= LENGTH
    meanings: Any  # int64 [pairs]


def config(tokenizer: Tokenizer) -> BertConfig:
    return BertConfig(
        architectures=["BertModel"], vocab_size=tokenizer.get_vocab_size(), hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, max_position_embeddings=MAX_LENGTH, dtype="float32",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def batch(tokenizer: Tokenizer, args: argparse.Namespace, step: int) -> PairBatch:
    rng = Random(f"pairs {args.seed} {step}")
    pairs = [training_pair(rng) for _ in range(args.tokens_per_batch // (2 * LENGTH))]
    encodings = tokenizer.encode_batch_fast([p.first for p in pairs] + [p.second for p in pairs])
    length = min(LENGTH, max(len(encoding.ids) for encoding in encodings))
    tokens: NDArray[np.int64] = np.zeros((len(encodings), length), np.int64)
    for row, encoding in zip(tokens, encodings, strict=True):
        ids = encoding.ids[:length]
        row[: len(ids)] = ids
    return PairBatch(tokens, np.array([crc32(pair.meaning.encode()) for pair in pairs], np.int64))


def embed(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, features], each of length 1."""
    hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
    kept = mask.unsqueeze(-1)
    return functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


def contrast(embeddings: torch.Tensor, meanings: torch.Tensor) -> torch.Tensor:
    """Every sentence against all others of the batch; its paraphrase must win. Others of its meaning don't count.

    embeddings [2 · pairs, features], meanings [pairs].
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)
    paraphrase = rows.roll(len(meanings))
    both = meanings.repeat(2)
    same = (both[:, None] == both).scatter(1, paraphrase[:, None], False)
    scores = (embeddings @ embeddings.T / TEMPERATURE).masked_fill(same, float("-inf"))
    return functional.cross_entropy(scores, paraphrase)


def train(model: BertModel, tokenizer: Tokenizer, args: argparse.Namespace) -> Outcome:
    batches = stream(lambda step: batch(tokenizer, args, step), args.steps, args.workers, args.device)
    model.to(args.device).train()

    def loss_of(batch: PairBatch) -> torch.Tensor:
        with mixed_precision(args.device):
            embeddings = embed(model, batch.tokens, (batch.tokens != 0).long())
        return contrast(embeddings, batch.meanings)

    used = [p for name, p in model.named_parameters() if not name.startswith("pooler.")]
    return fit(used, batches, loss_of, options.schedule(args), args.device)


def save(model: BertModel, folder: Path) -> None:
    """transformers' files and those of sentence-transformers around them."""
    model.config.save_pretrained(folder)
    model_files.save_weights(model.state_dict(), folder / "model.safetensors", torch.float32)
    (folder / "LICENSE").write_text(model_files.LICENSE)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    model_files.write_json(folder / "modules.json", modules)
    model_files.write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    model_files.write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    model_files.write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": model.config.hidden_size, **pooling}
    )


@torch.inference_mode()
def shares(folder: Path, num_pairs: int, device: str = "cpu") -> dict[str, float]:
    """Sort → share of its sentences that lie nearest to their paraphrase, `num_pairs` of each sort in one pool."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    pairs = [pair for sort in SORTS for pair in held_out(sort, num_pairs)]
    texts = [p.first for p in pairs] + [p.second for p in pairs]
    inputs = tokenizer(texts, return_tensors="pt", padding=True).to(device)
    embeddings = embed(model, inputs["input_ids"], inputs["attention_mask"])
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)
    right = (nearest == torch.arange(len(texts), device=device).roll(len(pairs))).view(2, len(SORTS), num_pairs)
    return dict(zip(SORTS, right.float().mean((0, 2)).tolist(), strict=True))


def evaluation(args: argparse.Namespace, num_pairs: int) -> str:
    lines = ["| sort | held-out sentences | nearest |", "| --- | ---: | ---: |"]
    lines += [
        f"| {s} | {2 * num_pairs} | {share:.1%} |" for s, share in shares(args.out, num_pairs, args.device).items()
    ]
    print("\n".join(lines), flush=True)
    return _EVALUATION.format(num=2 * num_pairs * len(SORTS), table="\n".join(lines))


def main() -> None:
    args = options.begin(options.parser(__doc__, steps=3_000, tokens_per_batch=65_536, lr=1e-3))
    tokenizer = wordpiece.train(args.seed)
    wordpiece.save(tokenizer, args.out, MAX_LENGTH)
    model = BertModel(config(tokenizer))
    model_files.check_size(model, MAX_BYTES, bytes_per_value=4)
    outcome = train(model, tokenizer, args)
    save(model, args.out)
    card = Card(
        "The embedding model of rtp_llm's demo",
        _ABOUT.format(millions=model_files.millions(model)),
        options.command("embedding.py", "rtp_llm/demo/embedding", args, outcome.num_steps),
        args.seed, options.device_name(args), outcome,
        loss=f"contrast of a sentence with all others of its batch, temperature {TEMPERATURE}",
        library="sentence-transformers", task="sentence-similarity",
    )  # fmt: skip
    card.publish(args, lambda: evaluation(args, args.prompts // 2))


if __name__ == "__main__":
    main()
