"""Several processes at once on one GPU: kernels of each are launched late, in bursts, and cut off in the middle."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from rtp_llm import LLM, SamplingParams
from rtp_llm.config import DEMO_MODEL
from rtp_llm.llm import RequestOutput
from tests.cluster.workload import bodies

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

PROCESSES, ROUNDS = 6, 30
FIFTY = bodies(50, seed=1, prompt_tokens=(1, 15, 16, 17, 40, 64, 129, 300), max_tokens=(2, 5, 12, 24))
Told = list[list[tuple[int, str]]]  # of each answer its tokens, with the bits of their logprobs


def told(results: list[RequestOutput]) -> Told:
    outputs = [result.outputs[0] for result in results]
    return [
        [(token, logprobs[token].logprob.hex()) for token, logprobs in zip(o.token_ids, o.logprobs or (), strict=True)]
        for o in outputs
    ]


def answers(rounds: int) -> tuple[str, list[Told]]:
    """The numerics id and the answers of each round: one prompt at a time and all at once, by turns. No prompt finds KV of
    an earlier round."""
    params = [SamplingParams(**{name: value for name, value in body.items() if name != "prompt"}) for body in FIFTY]
    rows = []
    with LLM(
        model=DEMO_MODEL, device="cuda", block_size=16, max_num_batched_tokens=512, kv_cache_memory_bytes=64 << 20
    ) as llm:
        for number in range(rounds):
            prompts = [{"prompt_token_ids": body["prompt"], "cache_salt": f"{number}"} for body in FIFTY]
            if number % 2:
                rows.append(told([llm.generate(prompt, each)[0] for prompt, each in zip(prompts, params, strict=True)]))
            else:
                rows.append(told(llm.generate(prompts, params)))
        return llm.engine.native.numerics_id, rows


def test_answers_in_company_are_those_of_a_process_alone() -> None:
    numerics, [expected] = answers(1)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as processes:
        for theirs, rows in processes.map(answers, [ROUNDS] * PROCESSES):
            assert theirs == numerics
            assert all(each == expected for each in rows)
