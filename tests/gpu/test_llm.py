"""The whole model on a GPU: its replies as on the CPU, its logprobs as transformers' on the same GPU, its bits its own."""

import random
from pathlib import Path
from typing import Any

import pytest

from rtp_llm import LLM, SamplingParams
from rtp_llm.config import DEMO_MODEL

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

QUESTIONS = [
    "What is 23 + 58?",
    "Hello!",
    "What is 7 x 34?",
    "Reverse the words: red green blue",
    "Repeat after me: a small boat sails far",
    "How many words are in: the cat sat on the mat",
]


def reply(device: str) -> list[str]:
    with LLM(model=DEMO_MODEL, device=device, dtype="bfloat16") as llm:
        params = SamplingParams(temperature=0, max_tokens=64)
        return [
            answers[0].outputs[0].text
            for answers in (llm.chat([{"role": "user", "content": q}], params) for q in QUESTIONS)
        ]


def test_the_demo_models_replies_are_the_cpus() -> None:
    assert reply("cuda") == reply("cpu")


def logprobs(checkpoint: Path, model: Any, prompts: list[list[int]], params: SamplingParams) -> tuple[Any, Any, Any]:
    """Of each token of `LLM`'s answers: by `LLM`, by transformers in bfloat16, and by transformers in float32. The
    weights are bfloat16's, in all three. `model` is used up."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model.to(torch.bfloat16).save_pretrained(checkpoint)
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    with LLM(model=str(checkpoint), device="cuda", dtype="bfloat16", skip_tokenizer_init=True) as llm:
        answers = [a.outputs[0] for a in llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)]
    ours = [entry[token].logprob for a in answers for token, entry in zip(a.token_ids, a.logprobs or (), strict=True)]
    theirs: list[Any] = []
    for dtype in (torch.bfloat16, torch.float32):
        # Loaded anew: to() would round the rotary frequencies too.
        reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval().to("cuda")
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = list(answer.token_ids)
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + tokens], device="cuda")).logits[0].float()
            given = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            rows.append(given.gather(1, torch.tensor(tokens, device="cuda")[:, None])[:, 0].cpu())
        theirs.append(torch.cat(rows))
    return torch.tensor(ours), theirs[0], theirs[1]


def check(name: str, ours: Any, theirs: Any, exact: Any) -> float:
    """The mean difference from transformers; ours must be as near to the exact values as transformers' are."""
    mean = float((ours - theirs).abs().mean())
    error, its_error = float((ours - exact).abs().mean()), float((theirs - exact).abs().mean())
    print(
        f"{name}: {len(ours)} tokens, mean difference {mean:.4f} (largest {float((ours - theirs).abs().max()):.4f}); from "
        f"float32: {error:.4f}, transformers in bfloat16 {its_error:.4f}"
    )
    assert error <= 1.1 * its_error
    return mean


def random_prompts(vocab_size: int) -> list[list[int]]:
    rng = random.Random(11)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in (1, 17, 128, 700)]


# Sampled: the token that rounding has lifted above the others is no fair sample of its errors.
SAMPLED = SamplingParams(temperature=1, seed=5, max_tokens=64, logprobs=0, ignore_eos=True)
SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("name", ["qwen3_untied", "llama_tied"])
def test_logprobs_are_those_of_transformers_on_this_gpu(name: str, tmp_path: Path) -> None:
    references = pytest.importorskip("tools.references")
    model_class, config_class, own = references.VARIANTS[name]
    model = model_class(config_class(**{**references.SMALL, **own, **SHAPE})).eval()
    assert check(name, *logprobs(tmp_path, model, random_prompts(2000), SAMPLED)) <= 0.02


def test_logprobs_of_a_trained_model_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"]
        for q in QUESTIONS
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()
    assert check("demo", *logprobs(tmp_path, model, prompts, SAMPLED)) <= 0.02


@pytest.mark.parametrize("name", ["qwen3_untied", "llama_tied"])
def test_a_model_that_magnifies_every_rounding_is_computed_as_exactly_as_by_transformers(
    name: str, tmp_path: Path
) -> None:
    references = pytest.importorskip("tools.references")
    model = references.build(name, 7, **SHAPE)
    check(name, *logprobs(tmp_path, model, random_prompts(2000), SAMPLED))


def test_random_mixes_give_each_request_its_own_bits() -> None:
    """Requests of random lengths and sampling, alone and in random company: the same tokens and logprobs, to the bit."""
    rng = random.Random()
    seed = rng.randrange(1 << 30)
    print("seed", seed)
    rng.seed(seed)

    def request() -> tuple[dict[str, list[int]], SamplingParams]:
        prompt = [rng.randrange(2560) for _ in range(rng.choice([1, 5, 16, 63, 64, 65, 200, 700]))]
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 20]),
            seed=rng.randrange(1 << 40),
            max_tokens=rng.randrange(1, 40),
            logprobs=rng.choice([None, 0, 3]),
            ignore_eos=True,
        )
        return {"prompt_token_ids": prompt}, params

    def answers(llm: LLM, requests: list[tuple[dict[str, list[int]], SamplingParams]]) -> list[object]:
        outputs = llm.generate([prompt for prompt, _ in requests], [params for _, params in requests])
        return [(list(o.outputs[0].token_ids), o.outputs[0].logprobs) for o in outputs]

    settings = {"model": DEMO_MODEL, "device": "cuda", "dtype": "bfloat16", "skip_tokenizer_init": True}
    with LLM(**settings, enable_prefix_caching=False, max_num_seqs=1, max_num_batched_tokens=2048) as alone:  # type: ignore[arg-type]
        requests = [request() for _ in range(24)]
        expected = [answers(alone, [one])[0] for one in requests]
    for mix in range(20):
        with LLM(
            **settings,  # type: ignore[arg-type]
            block_size=rng.choice([16, 32, 64]),
            max_num_seqs=rng.choice([3, 8, 24]),
            max_num_batched_tokens=rng.choice([17, 64, 300, 2048]),
            enable_prefix_caching=rng.random() < 0.5,
        ) as llm:
            chosen = rng.sample(range(len(requests)), rng.randrange(2, len(requests)))
            assert answers(llm, [requests[i] for i in chosen]) == [expected[i] for i in chosen], f"mix {mix}"
