"""The main job as a user sees it: a chat message in, prefilled in one pool, its KV over UCX, decoded in another, tokens out."""

import json
import os
import re
import subprocess
import sys
import time

import httpx

from tests.serve.deployment import ROOT, Deployment, environment, listening

DEMO = ROOT / "rtp_llm" / "demo"
QUESTION = {"messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0}


def kv_bytes_per_token() -> int:
    config = json.loads((DEMO / "config.json").read_text())
    bf16 = 2
    return int(config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * config["head_dim"] * bf16)


def ask(url: str, content: str = "What is 23 + 58?") -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def test_the_curl_that_serve_prints_gets_a_right_answer(deployment: Deployment) -> None:
    command = deployment.start_lines[-1]
    assert command.startswith(f"curl {deployment.url}/v1/chat/completions")
    body = json.loads(command.partition("-d '")[2].removesuffix("'"))
    answer = httpx.post(f"{deployment.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "23 + 58 = 81."
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_the_curl_of_the_readme_gets_the_answer_that_it_shows(url: str) -> None:
    readme = (ROOT / "README.md").read_text()
    [(path, body)] = re.findall(r"curl http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'", readme, re.S)
    answer = httpx.post(f"{url}{path}", content=body, headers={"Content-Type": "application/json"}, timeout=60).json()
    assert f'"content": "{answer["choices"][0]["message"]["content"]}"' in readme


def test_every_kv_byte_goes_over_ucx_once_and_decode_computes_no_prompt_token(deployment: Deployment) -> None:
    before = deployment.metrics()
    prompts = ["What is 31 + 45?", "What is 31 + 45?", "My name is Ada. What is my name? " * 20]
    prompt_tokens = [ask(deployment.url, prompt).json()["usage"]["prompt_tokens"] for prompt in prompts]
    after = deployment.metrics()

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    hit = grown("rtp_llm_prefix_hit_tokens_total", pool="decode")
    assert hit == prompt_tokens[1] // 16 * 16  # the second prompt's full blocks lie at the receiver
    payload = (sum(prompt_tokens) - hit) * kv_bytes_per_token()
    assert grown("rtp_llm_transfer_bytes_total", pool="prefill", direction="sent") == payload
    assert grown("rtp_llm_transfer_bytes_total", pool="decode", direction="received") == payload
    assert grown("rtp_llm_transfers_total", pool="decode", outcome="committed_received") == len(prompts)
    assert grown("rtp_llm_prompt_tokens_computed_total", pool="decode") == 0
    assert grown("rtp_llm_decode_tokens_computed_total", pool="prefill") == 0
    assert deployment.replica("prefill") != deployment.replica("decode")


def test_replicas_have_the_priority_of_who_started_them(deployment: Deployment) -> None:
    replicas = [pid for name in ("router", "prefill", "decode") for pid in deployment.replicas(name)]
    [own] = {os.getpriority(os.PRIO_PROCESS, pid) for pid in replicas}
    assert own == os.getpriority(os.PRIO_PROCESS, deployment.process.pid)


def test_models_and_health(deployment: Deployment) -> None:
    models = httpx.get(f"{deployment.url}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    assert httpx.get(f"{deployment.url}/health").json() == {"status": "ok"}
    too_many = httpx.get(f"{deployment.url}/health", params={"workers": 3})
    assert too_many.status_code == 503
    assert too_many.json()["error"]["message"] == "fewer than 3 workers are connected"


def test_nothing_listens_beyond_loopback(deployment: Deployment) -> None:
    processes = deployment.processes()
    found = list(listening(set(processes)))
    assert len(found) > 10
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
    assert [(processes[pid], address) for pid, address in found if not address.startswith(loopback)] == []


def test_progress_is_shown_and_the_last_lines_say_url_and_curl(deployment: Deployment) -> None:
    steps = [re.sub(r"^\[.*?\] ", "", line) for line in deployment.start_lines if line.startswith("[")]
    assert [step.split(",")[0].split(" at ")[0] for step in steps] == [
        "starting Ray",
        "Ray is",
        "starting Serve",
        "starting 1 router",
        "connecting workers",
        "prefill: a worker's KV pool holds 131",
        "decode: a worker's KV pool holds 131",
    ]
    assert steps[-1].endswith("131,072 tokens, a request may have 2,048")  # max_num_seqs times the context
    assert deployment.start_lines[-2] == f"ready at {deployment.url}"


def test_the_terminal_chat_remembers_the_conversation(deployment: Deployment) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "rtp_llm.cli", "chat", "--url", deployment.url],
        input="My name is Ada.\nWhat is my name?\n/quit\n",
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "Your name is Ada."


def test_the_first_token_is_not_held_back(url: str) -> None:
    """The proxy buffers nothing: the first event comes long before the last."""
    body = {"prompt": "a b c", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    begun = time.monotonic()
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        came = [time.monotonic() - begun for chunk in response.iter_raw() if chunk.startswith(b"data: ")]
    assert came[0] < came[-1] / 2
