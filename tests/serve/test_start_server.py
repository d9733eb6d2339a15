"""`python -m rtp_llm.start_server` as a process, by RTP-LLM's variables."""

import signal
import sys
from pathlib import Path

import httpx

from rtp_llm import LLM
from rtp_llm.config import DEMO_MODEL
from rtp_llm.model_factory import Model
from rtp_llm.pipeline import Pipeline
from tests.serve.deployment import Deployment, environment


class StartedServer(Deployment):
    def __init__(self, cwd: Path, **variables: str) -> None:
        command = [sys.executable, "-m", "rtp_llm.start_server"]
        self._start(command, {**environment(), **variables}, cwd, ready="curl ")


def test_a_server_started_by_variables_answers_as_a_pipeline_and_ends_by_sigterm(tmp_path: Path) -> None:
    server = StartedServer(
        tmp_path, CHECKPOINT_PATH=DEMO_MODEL, TOKENIZER_PATH=DEMO_MODEL, MODEL_TYPE="qwen_3", MAX_SEQ_LEN="256",
        START_PORT="0", CONCURRENCY_LIMIT="4", KV_CACHE_MEM_MB="16", INT8_KV_CACHE="0", ASYNC_MODE="1",
    )  # fmt: skip
    try:
        body = {"prompt": "What is 23 + 58?", "generate_config": {"max_new_tokens": 9, "top_k": 1}}
        answer = httpx.post(f"{server.url}/", json=body, timeout=60).json()
        [workers] = {
            (worker["max_seq_len"], worker["max_concurrency"])
            for worker in httpx.get(f"{server.url}/worker_status").json()["workers"]
        }
    finally:
        status = server.stop(signal.SIGTERM)
    assert status == 0, "\n".join(server.lines)
    assert workers == (256, 4)
    with Pipeline(Model(LLM(model=DEMO_MODEL, max_model_len=256))) as pipeline:
        *_, last = pipeline("What is 23 + 58?", max_new_tokens=9, top_k=1)
    assert ([answer["response"]], answer["finished"]) == (last.batch_response, True)
