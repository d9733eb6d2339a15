"""LLM, in vLLM's names, on the demo model."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import LLM, SamplingParams
from rtp_llm.config import DEMO_MODEL
from rtp_llm.engine import Inbox
from rtp_llm.errors import (
    ChatTemplateError,
    ConfigError,
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
)
from rtp_llm.loaded_weights import WeightsSource
from rtp_llm.model.safetensors_file import SafetensorsFile
from rtp_llm.request import Request
from tests.model.files import with_layers_exchanged, write_safetensors
from tests.model.tokenizer_files import with_bos

GREEDY = SamplingParams(temperature=0, max_tokens=32)
SUM = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model=DEMO_MODEL, max_model_len=512) as llm:
        yield llm


def assert_idle(llm: LLM) -> None:
    llm.generate([[5]], SamplingParams(max_tokens=1))  # behind any cancel
    llm.engine.native.check_idle()


def test_chat_answers_and_ends_by_eos(llm: LLM) -> None:
    [request] = llm.chat(SUM, GREEDY)
    assert request.finished
    assert request.prompt is not None
    assert "12 + 30" in request.prompt
    [answer] = request.outputs
    assert "42" in answer.text
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
    assert answer.token_ids[-1] in llm.engine.native.eos_token_ids
    assert answer.text == llm.get_tokenizer().decode(answer.token_ids)
    assert_idle(llm)


def test_several_conversations_are_answered_in_order(llm: LLM) -> None:
    sums = [[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in ((3, 4), (20, 25), (7, 1))]
    answers = [request.outputs[0].text for request in llm.chat(sums, GREEDY)]
    assert [str(n) in text for n, text in zip((7, 45, 8), answers, strict=True)] == [True] * 3


def test_text_tokens_and_dictionaries_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("Hello there")
    prompts = ["Hello there", ids, {"prompt": "Hello there"}, {"prompt_token_ids": ids}]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt_token_ids for output in outputs] == [ids] * 4
    assert [output.prompt for output in outputs] == ["Hello there", None, "Hello there", None]
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert len(llm.generate(ids, GREEDY)) == 1


def test_a_batch_gives_what_one_at_a_time_gives(llm: LLM) -> None:
    prompts = [f"The number {i}" for i in range(6)]
    params = [SamplingParams(temperature=0.9, top_p=0.9, seed=i, max_tokens=10 + i, logprobs=2) for i in range(6)]
    together = llm.generate(prompts, params)
    single = [llm.generate(prompt, p)[0] for prompt, p in zip(prompts, params, strict=True)]
    for a, b in zip(together, single, strict=True):
        assert a.outputs == b.outputs
    assert_idle(llm)


def test_threads_share_an_llm_and_get_what_each_asked_for(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=1, max_tokens=24, ignore_eos=True, n=2)
    prompts = [[f"Thread {thread}, prompt {i}" for i in range(4)] for thread in range(3)]
    expected = [[output.outputs for output in llm.generate(each, params)] for each in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = [pool.submit(llm.generate, each, params) for each in prompts]
        answers = [[output.outputs for output in each.result(timeout=120)] for each in together]
    assert answers == expected
    assert_idle(llm)


NEUTRAL = {
    **dict.fromkeys(("lora_request", "code_revision", "quantization")),
    "tensor_parallel_size": 1, "trust_remote_code": False, "gpu_memory_utilization": 0.9, "enforce_eager": True,
    "tokenizer": DEMO_MODEL, "tokenizer_mode": "auto", "swap_space": 4, "hf_overrides": {}, "disable_log_stats": True,
    "seed": None, "served_model_name": "demo", "enable_sleep_mode": False, "model_impl": "auto", "max_loras": 1,
}  # fmt: skip


def test_vllms_arguments_are_taken_where_they_ask_for_nothing_and_else_refused_by_name(llm: LLM) -> None:
    given = {name: value for name, value in NEUTRAL.items() if name != "lora_request"}
    LLM(model=DEMO_MODEL, max_model_len=64, load_format="dummy", **given).close()
    for name, value in [
        ("tensor_parallel_size", 2), ("quantization", "fp8"), ("tokenizer", "elsewhere"), ("enable_lora", True),
        ("speculative_config", {"model": "draft"}), ("code_revision", "main"),
    ]:  # fmt: skip
        with pytest.raises(InvalidRequestError, match=f"{name} is not supported, got") as refused:
            LLM(model=DEMO_MODEL, **{name: value})
        assert refused.value.param == name
    with pytest.raises(TypeError, match="nobody_knows_it"):
        LLM(model=DEMO_MODEL, nobody_knows_it=1)

    one = SamplingParams(max_tokens=1)
    llm.generate("Hello", one, use_tqdm=False, lora_request=None, priority=None)
    llm.chat(SUM, one, use_tqdm=False, tools=None, chat_template=None, continue_final_message=False)
    with pytest.raises(InvalidRequestError, match="lora_request is not supported"):
        llm.generate("Hello", one, lora_request=5)
    with pytest.raises(InvalidRequestError, match="multi_modal_data is not supported"):
        llm.generate({"prompt": "Hello", "multi_modal_data": {"image": 1}}, one)
    for call in (lambda: llm.generate("Hello", one, nobody=1), lambda: llm.chat(SUM, one, nobody=1)):
        with pytest.raises(TypeError, match="nobody"):
            call()


def test_a_template_and_tools_of_the_caller_reach_the_prompt(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    one = SamplingParams(max_tokens=1)
    [shown] = llm.chat(SUM, one, tools=[tool])
    assert shown.prompt is not None and '"name": "get_weather"' in shown.prompt
    with pytest.raises(ChatTemplateError, match=r"tools\[0\]\.function must be an object"):
        llm.chat(SUM, one, tools=[{}])
    [own] = llm.chat(SUM, one, chat_template="{{ messages[0].content }}!")
    assert own.prompt == "What is 12 + 30?!"
    with pytest.raises(ChatTemplateError, match="line 1"):
        llm.chat(SUM, one, chat_template="{% for %}")


def test_an_answer_may_go_on_with_a_message(llm: LLM) -> None:
    greedy = SamplingParams(max_tokens=16, temperature=0)
    [whole] = llm.chat(SUM, greedy)
    begun = whole.outputs[0].text[:5]
    [rest] = llm.chat(
        [*SUM, {"role": "assistant", "content": begun}],
        greedy,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert begun + rest.outputs[0].text == whole.outputs[0].text
    with pytest.raises(InvalidRequestError, match="continue_final_message True goes with add_generation_prompt False"):
        llm.chat(SUM, greedy, continue_final_message=True)


def test_a_cache_salt_keeps_a_prompts_blocks_apart(llm: LLM) -> None:
    prompt = [(i * 23) % 1500 + 20 for i in range(70)]
    one = SamplingParams(max_tokens=1)

    def cached(salt: str | None) -> int:
        return llm.generate({"prompt_token_ids": prompt, "cache_salt": salt}, one)[0].num_cached_tokens

    assert [cached(salt) for salt in ("a", "b", None, "a", "b", None)] == [0, 0, 0, 64, 64, 64]
    with pytest.raises(InvalidRequestError, match="cache_salt must be a text of valid Unicode, got 5"):
        cached(5)  # type: ignore[arg-type]


def test_prompts_have_priorities_of_their_own(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    add = Inbox.add

    def noted(inbox: Inbox, request: Request) -> object:
        asked.append(request.priority)
        return add(inbox, request)

    monkeypatch.setattr(Inbox, "add", noted)
    one = SamplingParams(max_tokens=1)
    for priority in ([3, -4], None, []):
        assert len(llm.generate(["Hello", "you"], one, priority=priority)) == 2
    assert asked == [3, -4, 0, 0, 0, 0]
    for wrong in ([1], 5, ["high", 0], [2**31, 0]):
        with pytest.raises(InvalidRequestError, match="priority must be"):
            llm.generate(["Hello", "you"], one, priority=wrong)  # type: ignore[arg-type]


def test_a_rendered_prompt_need_not_begin_twice(tmp_path: Path) -> None:
    model = with_bos(tmp_path / "model")
    one = SamplingParams(max_tokens=1)
    with LLM(model=str(model), max_model_len=64) as llm:
        text = "<|endoftext|>hi"
        [twice] = llm.generate(text, one)
        [once] = llm.generate(text, one, tokenization_kwargs={"add_special_tokens": False})
        assert twice.prompt_token_ids == [0, *once.prompt_token_ids] and once.prompt_token_ids[:2] != [0, 0]
        [chat] = llm.chat(SUM, one)
        [begun] = llm.chat(SUM, one, tokenization_kwargs={"add_special_tokens": True})
        assert begun.prompt_token_ids == [0, *chat.prompt_token_ids]
        with pytest.raises(InvalidRequestError, match="truncation is not supported"):
            llm.generate(text, one, tokenization_kwargs={"truncation": True})
        with pytest.raises(InvalidRequestError, match="add_special_tokens must be true or false"):
            llm.generate(text, one, tokenization_kwargs={"add_special_tokens": "no"})


def test_a_prompt_that_is_truncated_is_answered_as_what_is_kept_of_it(llm: LLM) -> None:
    text = "What is 12 + 30? " * 400
    tokens = llm.get_tokenizer().encode(text)
    assert len(tokens) > llm.engine.native.max_model_len

    def kept(prompts: Any, params: SamplingParams, **said: Any) -> list[int]:
        [request] = llm.generate(prompts, params, **said)
        [same] = llm.generate([request.prompt_token_ids], replace(params, truncate_prompt_tokens=None))
        assert request.outputs[0].token_ids == same.outputs[0].token_ids
        return request.prompt_token_ids

    few = SamplingParams(temperature=0, max_tokens=4)
    assert kept(text, replace(few, truncate_prompt_tokens=9)) == tokens[-9:]
    assert kept(tokens, replace(few, truncate_prompt_tokens=9, truncation_side="right")) == tokens[:9]
    assert kept(text, replace(few, truncate_prompt_tokens=-1)) == tokens[-508:]
    assert kept(text, few, tokenization_kwargs={"truncate_prompt_tokens": 9}) == tokens[-9:]
    [chat] = llm.chat([{"role": "user", "content": text}], replace(few, truncate_prompt_tokens=9))
    assert len(chat.prompt_token_ids) == 9
    with pytest.raises(InvalidRequestError, match="truncate_prompt_tokens must be an integer from 1"):
        llm.generate(text, few, tokenization_kwargs={"truncate_prompt_tokens": 0})
    assert_idle(llm)


def test_a_head_of_its_own_beside_a_tied_embedding_is_computed_with(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model, ignore=shutil.ignore_patterns("draft", "moe", "embedding", "adapters"))
    with SafetensorsFile(model / "model.safetensors") as file:
        stored = {name: (t.dtype, t.shape, bytes(next(file.chunks(t, memoryview(bytearray(t.num_bytes)), t.num_bytes))))
                  for name, t in file.tensors.items()}  # fmt: skip
    dtype, shape, data = stored["model.embed_tokens.weight"]
    row = len(data) // shape[0]
    rows = [data[i : i + row] for i in range(0, len(data), row)]
    write_safetensors(model / "model.safetensors", {**stored, "lm_head.weight": (dtype, shape, b"".join(rows[::-1]))})
    greedy = SamplingParams(temperature=0, max_tokens=1)
    with LLM(model=DEMO_MODEL) as tied, LLM(model=str(model)) as own:
        [[usual], [reversed]] = tied.chat(SUM, greedy), own.chat(SUM, greedy)
    [[usual_token], [token]] = usual.outputs[0].token_ids, reversed.outputs[0].token_ids
    assert token == shape[0] - 1 - usual_token


@pytest.mark.parametrize("eos", [0, None])
def test_the_tokenizers_end_of_turn_ends_a_chat_whatever_the_config_says(tmp_path: Path, eos: int | None) -> None:
    model = tmp_path / "model"
    shutil.copytree(
        DEMO_MODEL, model, ignore=shutil.ignore_patterns("draft", "moe", "embedding", "adapters", "generation*")
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    with LLM(model=str(model)) as llm:
        [answer] = llm.chat(SUM, GREEDY)[0].outputs
    assert (answer.finish_reason, answer.text) == ("stop", "12 + 30 = 42.")


def test_logprobs_hold_the_sampled_token_and_the_highest(llm: LLM) -> None:
    [request] = llm.generate(
        "Hello", SamplingParams(temperature=1.5, seed=3, max_tokens=8, logprobs=3, ignore_eos=True)
    )
    [answer] = request.outputs
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 8
    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        assert token in entry
        assert len(entry) in (3, 4)
        ranked = sorted((p for p in entry.values() if p.rank is not None), key=lambda p: p.rank)
        assert [p.rank for p in ranked] == [1, 2, 3]
        assert ranked[0].logprob >= ranked[1].logprob >= ranked[2].logprob
        assert entry[token].decoded_token == llm.get_tokenizer().token_text(token)
    total = sum(entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs, strict=True))
    assert answer.cumulative_logprob == pytest.approx(total)


def test_no_logprobs_unless_asked_for(llm: LLM) -> None:
    answer = llm.generate("Hello", GREEDY)[0].outputs[0]
    assert answer.logprobs is None
    assert answer.cumulative_logprob is None


def test_n_choices_differ_share_the_prompt_and_repeat_with_their_seed(llm: LLM) -> None:
    prompt = [(i * 31) % 1500 + 20 for i in range(100)]
    params = SamplingParams(n=3, temperature=1.2, seed=5, max_tokens=8, ignore_eos=True)
    before = llm.engine.native.load()
    [request] = llm.generate([prompt], params)
    after = llm.engine.native.load()
    assert [answer.index for answer in request.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in request.outputs}) == 3
    assert after.prefix_hit_tokens - before.prefix_hit_tokens >= 2 * 96
    assert llm.generate([prompt], params)[0].outputs == request.outputs


def test_a_missing_seed_is_drawn_from_the_llms(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    a, b = (output.outputs[0].token_ids for output in llm.generate(["Hello", "Hello"], params))
    assert a != b


def test_a_stop_string_ends_the_answer_before_it(llm: LLM) -> None:
    whole = llm.chat(SUM, GREEDY)[0].outputs[0].text
    stop = whole[4:6]
    [request] = llm.chat(SUM, replace(GREEDY, stop=[stop]))
    [answer] = request.outputs
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    kept = llm.chat(SUM, replace(GREEDY, stop=stop, include_stop_str_in_output=True))[0].outputs[0]
    assert kept.text == whole[: whole.index(stop) + len(stop)]
    assert_idle(llm)


def test_a_stop_string_within_min_tokens_does_not_end_the_answer(llm: LLM) -> None:
    whole = llm.chat(SUM, GREEDY)[0].outputs[0]
    number = len(whole.token_ids) - 1
    [request] = llm.chat(SUM, replace(GREEDY, stop=[whole.text[:1]], min_tokens=number, max_tokens=number))
    assert (len(request.outputs[0].token_ids), request.outputs[0].finish_reason) == (number, "length")
    assert whole.text.startswith(request.outputs[0].text) and request.outputs[0].text


def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM) -> None:
    whole = llm.chat(SUM, GREEDY)[0].outputs[0]
    token = whole.token_ids[2]
    [answer] = llm.chat(SUM, replace(GREEDY, stop_token_ids=[token]))[0].outputs
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", token)
    assert whole.text.startswith(answer.text)


def test_only_allowed_tokens_come_and_a_bias_chooses_among_them(llm: LLM) -> None:
    params = replace(GREEDY, max_tokens=8, ignore_eos=True, logprobs=1)
    whole = llm.chat(SUM, params)[0].outputs[0]
    allowed = [*range(40, 60), 70]
    [answer] = llm.chat(SUM, replace(params, allowed_token_ids=allowed))[0].outputs
    assert set(answer.token_ids) <= set(allowed)
    [biased] = llm.chat(SUM, replace(params, allowed_token_ids=allowed, logit_bias={70: 100.0}))[0].outputs
    assert list(biased.token_ids) == [70] * 8
    # What is reported is what the model says: the highest is the one that may not come.
    assert answer.logprobs is not None and whole.token_ids[0] in answer.logprobs[0]


def test_penalties_keep_an_answer_from_repeating_itself(llm: LLM) -> None:
    params = replace(GREEDY, max_tokens=12, allowed_token_ids=range(40, 60))
    [whole] = llm.generate([[41, 42]], params)[0].outputs
    assert len(set(whole.token_ids)) < 12
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 10.0}):
        [answer] = llm.generate([[41, 42]], replace(params, **penalty))[0].outputs
        assert len(set(answer.token_ids)) > len(set(whole.token_ids)), penalty
    # The prompt's tokens count as well.
    [new] = llm.generate([[41, 42]], replace(params, repetition_penalty=1e6))[0].outputs
    assert not {41, 42} & set(new.token_ids)


def test_min_tokens_and_ignore_eos_go_on_past_the_end(llm: LLM) -> None:
    end = len(llm.chat(SUM, GREEDY)[0].outputs[0].token_ids)
    longer = llm.chat(SUM, replace(GREEDY, min_tokens=end + 3))[0].outputs[0]
    assert len(longer.token_ids) > end + 2
    ignoring = llm.chat(SUM, replace(GREEDY, max_tokens=end + 5, ignore_eos=True))[0].outputs[0]
    assert (len(ignoring.token_ids), ignoring.finish_reason) == (end + 5, "length")


def test_max_tokens_none_runs_to_the_context(llm: LLM) -> None:
    [request] = llm.generate([[7] * 500], SamplingParams(max_tokens=None, ignore_eos=True))
    assert len(request.outputs[0].token_ids) == 12
    assert request.outputs[0].finish_reason == "length"


def test_a_second_run_of_a_prompt_says_what_was_cached(llm: LLM) -> None:
    prompt = [(i * 17) % 1500 + 20 for i in range(70)]
    assert llm.generate([prompt], GREEDY)[0].num_cached_tokens == 0
    assert llm.generate([prompt], GREEDY)[0].num_cached_tokens == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 3),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("n", 0),
        ("logprobs", 21),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop_token_ids", [-5]),
    ],
)
def test_each_bad_sampling_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(**{field: value})
    assert field in str(refused.value)
    assert refused.value.param == field


def test_bad_prompts_are_refused_by_name_and_nothing_is_left_running(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError, match="prompt of 512 tokens is too long"):
        llm.generate(["Hello", [1] * 512], GREEDY)
    with pytest.raises(InvalidRequestError, match=r"prompt\[0\] = 2560 is out of range") as refused:
        llm.generate([[1, 2], [2560]], GREEDY)
    assert refused.value.param == "prompt"
    with pytest.raises(InvalidRequestError, match="at least one token"):
        llm.generate([{"prompt_token_ids": []}], GREEDY)
    with pytest.raises(InvalidRequestError, match=r"prompt_token_ids\[1\] must be a token id, got 'x'"):
        llm.generate([{"prompt_token_ids": [1, "x"]}], GREEDY)
    with pytest.raises(InvalidRequestError, match="must have prompt or prompt_token_ids"):
        llm.generate([{}], GREEDY)
    with pytest.raises(InvalidRequestError, match="2 entries for 1 prompts"):
        llm.generate(["Hello"], [GREEDY, GREEDY])
    with pytest.raises(InvalidRequestError, match=r"stop_token_ids\[0\] = 9999") as refused:
        llm.generate("Hello", replace(GREEDY, stop_token_ids=[9999]))
    assert refused.value.param == "stop_token_ids"
    with pytest.raises(ChatTemplateError):
        llm.chat([{"role": "user", "content": 5}], GREEDY)
    with pytest.raises(InvalidRequestError, match="prompts must be a prompt or a list, got None"):
        llm.generate(None, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="prompt_token_ids must be a list of token ids, got 5"):
        llm.generate([{"prompt_token_ids": 5}], GREEDY)
    with pytest.raises(InvalidRequestError, match="sampling_params must be SamplingParams, got 'temperature'"):
        llm.generate("Hello", {"temperature": 0})  # type: ignore[arg-type]
    assert_idle(llm)


HI = [{"role": "user", "content": "hi"}]
ONE = np.array([1, 2])


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda llm: llm.generate(b"hi"), "prompts"),
        (lambda llm: llm.generate(["hi", b"hi"]), "prompt_token_ids"),
        (lambda llm: llm.generate({"prompt_token_ids": bytearray(b"hi")}), "prompt_token_ids"),
        (lambda llm: llm.generate({"prompt": "hi", "cache_salt": "\ud83d"}), "cache_salt"),
        (lambda llm: llm.generate({"prompt": "hi", "cache_salt": 0}), "cache_salt"),
        (lambda llm: llm.generate({"prompt": "hi", "multi_modal_data": ONE}), "multi_modal_data"),
        (lambda llm: llm.generate("hi", 5), "sampling_params"),
        (lambda llm: llm.generate("hi", priority=b"h"), "priority"),
        (lambda llm: llm.generate("hi", priority=ONE), "priority"),
        (lambda llm: llm.generate("hi", priority=0), "priority"),
        (lambda llm: llm.generate("hi", tokenization_kwargs="special"), "tokenization_kwargs"),
        (lambda llm: llm.generate("hi", lora_request=ONE), "lora_request"),
        (lambda llm: llm.chat("hi"), "messages"),
        (lambda llm: llm.chat(5), "messages"),
        (lambda llm: llm.chat(HI[0]), "messages"),
        (lambda llm: llm.chat([5]), "messages[0]"),
        (lambda llm: llm.chat([HI, HI[0]]), "messages[1]"),
        (lambda llm: llm.chat([*HI, HI]), "messages[1]"),
        (lambda llm: llm.chat(HI, tools=ONE), "tools"),
        (lambda llm: llm.chat(HI, tools={}), "tools"),
        (lambda llm: llm.chat(HI, add_generation_prompt="no"), "add_generation_prompt"),
        (lambda llm: llm.chat(HI, chat_template=b"x"), "chat_template"),
        (lambda llm: llm.chat(HI, chat_template_kwargs=5), "chat_template_kwargs"),
        (lambda llm: llm.chat(HI, chat_template_kwargs={1: 2}), "chat_template_kwargs"),
        (lambda llm: llm.chat(HI, chat_template_kwargs={"tools": []}), "chat_template_kwargs.tools"),
        (lambda llm: llm.chat(HI, chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages"),
        (lambda llm: SamplingParams(logit_bias=ONE), "logit_bias"),
        (lambda llm: SamplingParams(bad_words=np.float32(0)), "bad_words"),
        (lambda llm: SamplingParams(stop=ONE), "stop"),
        (lambda llm: SamplingParams(stop_token_ids=ONE), "stop_token_ids"),
    ],
)
def test_a_value_of_a_type_that_nobody_thought_of_is_refused_by_name(
    llm: LLM, call: Callable[[LLM], object], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        call(llm)
    assert refused.value.param == param
    assert param in refused.value.message
    assert_idle(llm)


def test_without_a_tokenizer_tokens_go_in_and_out() -> None:
    with LLM(model=DEMO_MODEL, skip_tokenizer_init=True, max_model_len=64, load_format="dummy", dtype="float32") as llm:
        [request] = llm.generate([{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=3, logprobs=1))
        assert len(request.outputs[0].token_ids) == 3
        assert request.outputs[0].text == ""
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init=True"):
            llm.generate("text", GREEDY)
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init=True"):
            llm.generate([[1]], replace(GREEDY, stop="x"))


def test_equal_seeds_of_dummy_weights_give_equal_answers() -> None:
    def answer(seed: int) -> list[int]:
        with LLM(model=DEMO_MODEL, max_model_len=64, load_format="dummy", seed=seed) as llm:
            return llm.generate([[5, 6, 7]], SamplingParams(max_tokens=8, ignore_eos=True))[0].outputs[0].token_ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_small_pool_preempts_and_answers_the_same(llm: LLM) -> None:
    prompts = [[(i * 13 + j) % 1500 + 20 for j in range(30)] for i in range(5)]
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=60, ignore_eos=True, logprobs=0) for i in range(5)]
    expected = [output.outputs for output in llm.generate(prompts, params)]
    with LLM(model=DEMO_MODEL, max_model_len=512, block_size=8, num_gpu_blocks_override=30) as small:
        assert [output.outputs for output in small.generate(prompts, params)] == expected
        assert small.engine.native.load().preemptions > 0
        assert_idle(small)


def test_weights_are_replaced_in_place_and_answers_are_those_of_a_fresh_llm(llm: LLM, tmp_path: Path) -> None:
    other = with_layers_exchanged(Path(DEMO_MODEL), tmp_path / "other")
    prompts = [list(range(3, 60)), list(range(200, 230))]
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=24, logprobs=2, ignore_eos=True)
    old = [result.outputs for result in llm.generate(prompts, params)]
    with LLM(model=str(other), max_model_len=512) as fresh:
        new = [result.outputs for result in fresh.generate(prompts, params)]
    assert new != old
    with LLM(model=DEMO_MODEL, max_model_len=512) as updated:
        assert [result.outputs for result in updated.generate(prompts, params)] == old
        memory = updated.engine.native.allocations()
        digests = [updated.engine.native.model_digest]
        for directory, expected in ((other, new), (other, new), (DEMO_MODEL, old)):
            assert updated.engine.native.cache_snapshot()[1] != b""
            updated.update_weights(directory)
            assert updated.engine.native.cache_snapshot()[1] == b""
            first, again = updated.generate(prompts, params), updated.generate(prompts, params)
            assert [result.outputs for result in first] == expected
            assert [result.outputs for result in again] == expected
            assert [result.num_cached_tokens for result in first] == [0, 0]  # nothing of other weights is hit
            assert again[0].num_cached_tokens > 0
            digests.append(updated.engine.native.model_digest)
        assert len(set(digests)) == 4  # also where the same weights came back
        assert updated.engine.native.allocations() == memory
        assert_idle(updated)


def test_weights_that_do_not_fit_are_refused_by_name_and_the_old_ones_stay(llm: LLM, tmp_path: Path) -> None:
    good = with_layers_exchanged(Path(DEMO_MODEL), tmp_path / "good")
    expected = llm.generate([[5, 6, 7]], GREEDY)[0].outputs

    def wrong(name: str, file: str, change: Callable[[bytes], bytes]) -> Path:
        shutil.copytree(good, tmp_path / name)
        (tmp_path / name / file).write_bytes(change((tmp_path / name / file).read_bytes()))
        return tmp_path / name

    cases = {
        tmp_path / "nowhere": "No such file",
        wrong("config", "config.json", lambda text: text.replace(b"1e-06", b"1e-05")): "rms_norm_eps is 1e-05",
        wrong("short", "model.safetensors", lambda content: content[:-100]): "truncated",
        wrong("named", "model.safetensors", lambda content: content.replace(b"q_proj", b"x_proj", 1)): "x_proj",
        wrong("shape", "model.safetensors", _with_another_shape): "expected shape",
    }
    memory = llm.engine.native.allocations()
    for directory, words in cases.items():
        with pytest.raises(ModelLoadError, match=words):
            llm.update_weights(directory)
        assert llm.generate([[5, 6, 7]], GREEDY)[0].outputs == expected
    assert llm.engine.native.allocations() == memory


def _with_another_shape(content: bytes) -> bytes:
    """The same bytes, a tensor's rows and columns exchanged."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.layers.0.mlp.down_proj.weight"]["shape"].reverse()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("old_is_gone", [False, True])
def test_an_update_that_fails_halfway_restores_the_old_weights_or_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_is_gone: bool
) -> None:
    first = with_layers_exchanged(Path(DEMO_MODEL), tmp_path / "first")
    second = with_layers_exchanged(Path(DEMO_MODEL), tmp_path / "second", 0, 2)
    with LLM(model=str(first), max_model_len=64) as llm:
        expected = llm.generate([[5, 6, 7]], GREEDY)[0].outputs
        weights = llm.engine.native.weights
        fill, filled = weights._fill, []

        def fails_once(source: WeightsSource) -> None:
            fill(source)  # all of it is written over
            filled.append(source.path)
            if len(filled) == 1:
                raise ModelLoadError("the disk is gone")

        monkeypatch.setattr(weights, "_fill", fails_once)
        if old_is_gone:
            shutil.rmtree(first)
            with pytest.raises(EngineError, match=r"the disk is gone; the old ones can't be read again: .*first"):
                llm.update_weights(second)
            with pytest.raises(EngineError, match="closed"):
                llm.generate([[5, 6, 7]], GREEDY)
            return
        with pytest.raises(ModelLoadError, match="the disk is gone"):
            llm.update_weights(second)
        assert filled == [str(second), str(first)]
        assert llm.generate([[5, 6, 7]], GREEDY)[0].outputs == expected


def test_requests_that_run_end_on_the_old_weights_and_later_ones_wait_for_the_new(llm: LLM, tmp_path: Path) -> None:
    other = with_layers_exchanged(Path(DEMO_MODEL), tmp_path / "other")
    long = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    old = llm.generate([[5, 6, 7]], long)[0].outputs
    with LLM(model=DEMO_MODEL, max_model_len=512) as updated, ThreadPoolExecutor(3) as threads:
        running = threads.submit(updated.generate, [[5, 6, 7]], long)
        while updated.engine.native.load().decode_tokens_computed < 3:
            time.sleep(0.001)
        updating = threads.submit(updated.update_weights, other)
        while not (updated._turns._is_wanted_alone or updating.done()):
            time.sleep(0.001)
        later = threads.submit(updated.generate, [[5, 6, 7]], long)
        assert running.result()[0].outputs == old
        updating.result()
        assert later.result()[0].outputs != old
        assert later.result()[0].outputs == updated.generate([[5, 6, 7]], long)[0].outputs


def test_weights_that_are_no_numbers_are_an_error_that_says_so(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    with SafetensorsFile(model / "model.safetensors") as file:
        norm = file.tensors["model.norm.weight"]
    with (model / "model.safetensors").open("r+b") as content:
        content.seek(norm.offset)
        content.write(b"\xc0\x7f")  # a bf16 NaN
    for skip in (True, False):
        with (
            LLM(model=str(model), max_model_len=64, skip_tokenizer_init=skip) as llm,
            pytest.raises(EngineError, match="no token could be sampled at position 0"),
        ):
            llm.generate([[5, 6]], GREEDY)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"engine\.num_threads"):
        LLM(model=DEMO_MODEL, num_threads=0)
    with pytest.raises(ConfigError, match=r"model.dtype.*float8"):
        LLM(model=DEMO_MODEL, dtype="float8")
    with pytest.raises(ModelLoadError, match="no-such-model"):
        LLM(model="no-such-model")
    with pytest.raises(InvalidRequestError, match=r"seed must be an integer .* got -1"):
        LLM(model=DEMO_MODEL, seed=-1)


def test_what_is_auto_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTP_LLM_MODEL__DTYPE", "float32")
    monkeypatch.setenv("RTP_LLM_ENGINE__KV_DTYPE", "bfloat16")
    monkeypatch.setenv("RTP_LLM_MODEL__LOAD_FORMAT", "dummy")
    with LLM(model=DEMO_MODEL, skip_tokenizer_init=True) as llm:
        assert llm.engine.native.numerics_id.split("/")[2:4] == ["float32", "bfloat16"]
    with LLM(model=DEMO_MODEL, skip_tokenizer_init=True, dtype="bfloat16") as llm:
        assert llm.engine.native.numerics_id.split("/")[2:4] == ["bfloat16", "bfloat16"]


def test_a_closed_llm_says_so() -> None:
    llm = LLM(model=DEMO_MODEL, skip_tokenizer_init=True)
    llm.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        llm.generate([[5]], GREEDY)
