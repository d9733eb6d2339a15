"""The demo model's siblings, as transformers and PEFT load them: agreement, capitals, a mixture of experts, neighbours."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "rtp_llm" / "demo"


@pytest.fixture(scope="module", autouse=True)
def tools() -> Any:
    """`tools/demo_model` on the path, as its commands have it."""
    folder = str(ROOT / "tools" / "demo_model")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_all_models_together_stay_below_16_megabytes() -> None:
    sizes = {path: path.stat().st_size for path in DEMO.rglob("*") if path.is_file()}
    limits = {
        ".": 8_000_000,
        "draft": 1_500_000,
        "moe": 4_000_000,
        "embedding": 2_000_000,
        "adapters/capitals": 200_000,
    }
    for folder, limit in limits.items():
        (weights,) = (DEMO / folder).glob("*.safetensors")
        assert weights.stat().st_size <= limit, folder
    assert sum(sizes.values()) <= 16_000_000


def test_the_draft_chooses_85_percent_of_the_chat_models_tokens() -> None:
    from agreement import Pair, table
    from data import SKILLS

    results = Pair(DEMO, DEMO / "draft", "cpu", batch_size=12).agreements(SKILLS, 2)
    print(table(results))
    assert sum(r.num_equal for r in results) >= 0.85 * sum(r.num_tokens for r in results)


def test_the_adapter_answers_in_capitals_and_the_model_alone_does_not() -> None:
    pytest.importorskip("peft")
    from adapter import SKILL, merged_score
    from evaluate import score, transformers_generate

    with_adapter = merged_score(DEMO, DEMO / "adapters" / "capitals", "cpu", 24)
    alone = score(transformers_generate(DEMO, "cpu"), SKILL, 24)
    print(f"in capitals: with the adapter {with_adapter.share:.0%}, without {alone.share:.0%}")
    assert with_adapter.share >= 0.9
    assert alone.share <= 0.1


def test_the_mixture_of_experts_loads_and_ends_its_turn() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(DEMO / "moe"), load(DEMO / "moe")
    assert model.config.model_type == "qwen3_moe"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=48)[0, prompt["input_ids"].shape[1] :]
    print(tokenizer.decode(output))
    assert len(output) > 1 and output[-1] == tokenizer.eos_token_id


def test_training_computes_the_logits_of_transformers() -> None:
    """The training's own passes (no mask; all experts as one MLP) against transformers' forward, chat and MoE."""
    from moe import make_dense
    from targets import hidden_states

    for folder in (DEMO, DEMO / "moe"):
        model = load(folder)
        tokens = torch.randint(3, model.config.vocab_size, (2, 70), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model(input_ids=tokens).logits
            if folder.name == "moe":
                make_dense(model)
            difference = (model.lm_head(hidden_states(model, tokens)) - expected).abs().max().item()
        print(f"{folder.name}: largest difference {difference:.1e}")
        assert difference <= 1e-3


def test_paraphrases_are_nearest() -> None:
    from embedding import shares

    found = shares(DEMO / "embedding", 60)  # 480 sentences
    print(found)
    assert min(found.values()) >= 0.95


def test_sentence_transformers_files_name_mean_pooling() -> None:
    folder = DEMO / "embedding"
    modules = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    assert modules == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
