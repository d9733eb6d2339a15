"""Pipeline, in RTP-LLM's names, on the demo model."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rtp_llm import SamplingParams
from rtp_llm.config import DEMO_MODEL
from rtp_llm.errors import (
    ConfigError,
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
    UnsupportedFieldError,
)
from rtp_llm.llm import CompletionOutput, RequestOutput
from rtp_llm.model_factory import WEIGHT_TYPE, Model, ModelConfig, ModelFactory
from rtp_llm.pipeline import NOT_HERE, QUIET, Pipeline
from rtp_llm.router.raw_body import RawBody

PROMPTS = ["hello, what's your name", "1 2 3", "What is 12 + 30?"]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = ModelFactory.from_huggingface(DEMO_MODEL, model_config=ModelConfig(max_seq_len=256))
    yield model
    model.stop()


@pytest.fixture
def pipeline(model: Model) -> Pipeline:
    return Pipeline(model, model.tokenizer)


def expected(model: Model, prompts: list[str], **params: Any) -> list[list[str]]:
    defaults = model.llm.get_default_sampling_params()
    outputs = model.llm.generate(prompts, replace(defaults, skip_special_tokens=False, **params))
    return [[answer.text for answer in output.outputs] for output in outputs]


def assert_idle(model: Model) -> None:
    model.llm.generate([[5]], SamplingParams(max_tokens=1))  # behind any cancel
    model.llm.engine.native.check_idle()


def test_answers_are_those_of_llm_and_grow_from_response_to_response(pipeline: Pipeline) -> None:
    responses = list(pipeline(PROMPTS, max_new_tokens=12, do_sample=False, ignore_eos=True))
    wanted = [text for [text] in expected(pipeline.model, PROMPTS, temperature=0, max_tokens=12, ignore_eos=True)]
    assert responses[-1].batch_response == wanted
    assert [response.finished for response in responses] == [False] * (len(responses) - 1) + [True]
    for earlier, later in pairwise(responses):
        pairs = list(zip(earlier.batch_response, later.batch_response, strict=True))
        assert all(after.startswith(before) for before, after in pairs)
    assert [info["output_len"] for info in responses[-1].batch_aux_info] == [12, 12, 12]
    assert_idle(pipeline.model)


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"top_k": 1, "stop_words_str": [" of"]}, {"top_k": 1, "stop": [" of"]}),
        ({"top_k": 1, "stop_words_str": (" of",)}, {"top_k": 1, "stop": [" of"]}),
        (
            {"top_k": 1, "stop_words_str": [" of"], "print_stop_words": True},
            {"top_k": 1, "stop": [" of"], "include_stop_str_in_output": True},
        ),
        ({"temperature": 0.9, "random_seed": 7, "num_return_sequences": 3}, {"temperature": 0.9, "seed": 7, "n": 3}),
        ({"random_seed": 5, "repetition_penalty": 1.3, "top_p": 0.8}, {"seed": 5, "repetition_penalty": 1.3, "top_p": 0.8}),
        ({"generate_config": {"random_seed": 5, "top_p": 0.1}, "top_p": 0.8}, {"seed": 5, "top_p": 0.8}),
        ({"top_k": 1, "stop_words_list": [[829]]}, {"top_k": 1, "stop_token_ids": [829]}),
    ],
)  # fmt: skip
def test_fields_of_generate_config_are_llms_by_other_names(
    pipeline: Pipeline, fields: dict[str, Any], params: dict[str, Any]
) -> None:
    *_, last = pipeline(PROMPTS[:2], max_new_tokens=10, **fields)
    wanted = expected(pipeline.model, PROMPTS[:2], max_tokens=10, **params)
    assert last.batch_response == (wanted if "num_return_sequences" in fields else [text for [text] in wanted])


def test_a_single_prompt_is_a_list_of_one(pipeline: Pipeline) -> None:
    [one], [listed] = (list(pipeline(each, max_new_tokens=4, top_k=1, stream=False)) for each in ("1 2", ["1 2"]))
    assert one == listed
    assert len(one.batch_response) == 1


def test_what_is_new_alone_is_in_incremental_responses(pipeline: Pipeline) -> None:
    [whole] = pipeline(PROMPTS, max_new_tokens=8, top_k=1, yield_generator=False)
    pieces = [r.batch_response for r in pipeline(PROMPTS, max_new_tokens=8, top_k=1, return_incremental=True)]
    assert ["".join(texts) for texts in zip(*pieces, strict=True)] == whole.batch_response
    sequences = [
        r.batch_response[0]
        for r in pipeline("1 2", max_new_tokens=8, top_k=1, return_incremental=True, num_return_sequences=2)
    ]
    [joined] = {"".join(texts) for texts in zip(*sequences, strict=True)}
    assert joined == expected(pipeline.model, ["1 2"], max_tokens=8, top_k=1)[0][0]


def test_token_ids_and_lengths_are_shown_where_they_are_asked_for(pipeline: Pipeline) -> None:
    [last] = pipeline(
        "1 2", max_new_tokens=3, top_k=1, stream=False, ignore_eos=True, return_input_ids=True, return_output_ids=True
    )
    assert last.batch_input_ids == [pipeline.tokenizer.encode("1 2")]
    assert last.batch_output_ids is not None and len(last.batch_output_ids[0]) == 3
    [without] = pipeline("1 2", max_new_tokens=3, top_k=1, stream=False, aux_info=False)
    assert (without.batch_input_ids, without.batch_output_ids, without.batch_aux_info) == (None, None, [{}])


def test_a_limit_beyond_the_context_is_what_the_context_leaves(pipeline: Pipeline) -> None:
    prompt = "1 2 3"
    [last] = pipeline(prompt, max_new_tokens=32000, top_k=1, ignore_eos=True, stream=False)
    room = 256 - len(pipeline.tokenizer.encode(prompt))
    assert last.batch_aux_info[0]["output_len"] == room
    with pytest.raises(PromptTooLongError):
        list(pipeline("1 " * 600, max_new_tokens=5))
    with pytest.raises(InvalidRequestError, match="min_new_tokens 300 is greater than max_tokens"):
        pipeline(prompt, max_new_tokens=400, min_new_tokens=300)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_beams": 4}, "num_beams is not supported, got 4"),
        ({"return_logits": True}, "return_logits is not supported, got True"),
        ({"generate_config": {"json_schema": "{}"}}, "json_schema is not supported, got '{}'"),
        ({"timeout_ms": 50}, "timeout_ms is not supported, got 50"),
        ({"ttft_timeout_ms": 5}, "ttft_timeout_ms is not supported, got 5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer from 1"),
        ({"max_new_tokens": "many"}, "max_new_tokens: .*got 'many'"),
        ({"top_p": 2}, "top_p must be a number from"),
        ({"stop_words_str": "x"}, "stop_words_str: Input should be a valid list, got 'x'"),
        ({"stop_words_str": ["x" * 2000]}, "stop_words_str has a string of 2000 characters"),
        ({"stop_words_list": [[1, 2]]}, r"stop_words_list\[0\] is not supported with more than one"),
        ({"yield_generator": "yes"}, "yield_generator must be true or false, got 'yes'"),
        ({"generate_config": {"generate_config": {}}}, "generate_config is no argument of a Pipeline: it is one"),
        ({"bad_words_list": np.array([1, 2])}, r"bad_words_list is not supported, got array\(\[1, 2\]\)"),
        ({"max_new_tokens": True}, "max_new_tokens: .*got True"),
        ({"temperature": float("nan")}, "temperature must be a number .*got nan"),
        ({"generate_config": 5}, "generate_config must be fields by name, got 5"),
        ({"messages": []}, r"messages is no argument of a Pipeline: LLM\.chat"),
    ],
)
def test_what_is_wrong_or_not_computed_is_refused_by_name_before_anything_runs(
    pipeline: Pipeline, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        pipeline("Hello", **fields)
    assert_idle(pipeline.model)


@pytest.mark.parametrize("prompts", [5, None, [], [5], b"Hello", {"prompt": "x"}, [["Hello"]], [None]])
def test_prompts_are_texts(pipeline: Pipeline, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompts(\[0\])? must be a text"):
        pipeline(prompts)


def test_a_name_that_no_field_has_is_a_type_error(pipeline: Pipeline) -> None:
    for fields in ({"max_new_token": 5}, {"generate_config": {"max_new_token": 5}}):
        with pytest.raises(TypeError, match="unexpected keyword argument 'max_new_token'"):
            pipeline("Hello", **fields)  # type: ignore[arg-type]


def test_fields_that_change_nothing_are_taken(pipeline: Pipeline) -> None:
    [last] = pipeline("1", max_new_tokens=2, stream=False, timeout_ms=-1, num_beams=1, **dict.fromkeys(QUIET, 1))
    assert last.finished
    assert QUIET.isdisjoint(RawBody.known_fields())
    assert NOT_HERE.keys() <= RawBody.known_fields()


def test_an_iterator_that_is_left_early_cancels_what_runs(pipeline: Pipeline) -> None:
    answers = pipeline(PROMPTS, ignore_eos=True)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert_idle(pipeline.model)
    for _ in pipeline(PROMPTS, ignore_eos=True):
        break
    assert_idle(pipeline.model)


def test_two_pipelines_of_a_model_answer_in_turns(model: Model) -> None:
    first, second = Pipeline(model), Pipeline(model, model.tokenizer)
    wanted = [r.batch_response for r in first(PROMPTS[:1], max_new_tokens=8, top_k=1)]
    answers = [each(PROMPTS[:1], max_new_tokens=8, top_k=1) for each in (first, second)]
    begun = [next(each) for each in answers]
    assert all(wanted[-1][0].startswith(each.batch_response[0]) for each in begun)
    last = [[first, *rest][-1] for first, rest in zip(begun, answers, strict=True)]
    assert [each.batch_response for each in last] == [wanted[-1]] * 2
    assert_idle(model)


def test_a_pipeline_takes_a_model_of_the_factorys_and_its_tokenizer(model: Model) -> None:
    with pytest.raises(TypeError, match="takes a model of ModelFactory's, got 'demo'"):
        Pipeline("demo")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="tokenizer is not supported, got 'other'"):
        Pipeline(model, "other")  # type: ignore[arg-type]


def test_after_stop_nothing_is_answered_and_stopping_again_is_nothing() -> None:
    model = ModelFactory.from_model_config(ModelConfig(ckpt_path=DEMO_MODEL, max_seq_len=64))
    pipeline, other = Pipeline(model), Pipeline(model)
    half_read, unread = (pipeline("1 2", ignore_eos=True) for _ in range(2))
    next(half_read)
    pipeline.stop()
    pipeline.stop()
    for answers in (half_read, unread):
        with pytest.raises(EngineError, match="the engine is closed"):
            list(answers)
    for each in (pipeline, other):
        with pytest.raises(EngineError, match="the pipeline's model is stopped"):
            each("Hello")


def test_threads_that_wait_for_answers_learn_that_the_model_is_stopped() -> None:
    pipeline = Pipeline(ModelFactory.from_huggingface(DEMO_MODEL, model_config=ModelConfig(max_seq_len=64)))
    engine = pipeline.model.llm.engine
    engine.native.pause()
    said: list[str] = []

    def read() -> None:
        try:
            list(pipeline(PROMPTS))
        except EngineError as error:
            said.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(engine._inboxes) < len(threads) * len(PROMPTS):
        time.sleep(0.001)
    pipeline.stop()
    for thread in threads:
        thread.join(30)
    assert said == ["the engine is closed"] * 3


def test_each_step_of_the_engine_is_a_response(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as they come where nothing is late."""

    def stream(*_: Any, **__: Any) -> Iterator[list[RequestOutput]]:
        request = RequestOutput("0", "x", [5], [CompletionOutput(0)])
        for text in ("a", "ab", "abc"):
            request.outputs[0].text = text
            request.finished = text == "abc"
            yield [request]

    monkeypatch.setattr(pipeline.model.llm, "stream", stream)
    grown = [response.batch_response for response in pipeline("x")]
    new = [response.batch_response for response in pipeline("x", return_incremental=True)]
    last = [response.batch_response for response in pipeline("x", yield_generator=False)]
    assert (grown, new, last) == ([["a"], ["ab"], ["abc"]], [["a"], ["b"], ["c"]], [["abc"]])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight_type": WEIGHT_TYPE.INT8}, "weight_type must be BF16, FP32 or AUTO, .* got 'INT8'"),
        ({"act_type": "fp16"}, "act_type must be BF16, .* got 'fp16'"),
        ({"weight_type": "FP32", "act_type": "BF16"}, "act_type is 'BF16', but weight_type is 'FP32'"),
        ({"model_type": "llama"}, "model_type llama is LlamaForCausalLM, but .*/config.json says Qwen3ForCausalLM"),
        ({"model_type": "chatglm"}, "model_type: there are llama, qwen_3, got 'chatglm'"),
        ({"tokenizer_path": "/elsewhere"}, "tokenizer_path is not supported, got '/elsewhere'"),
        ({"max_seq_len": -5}, "max_seq_len: model.max_model_len: .* got '-5'"),
        ({"max_seq_len": 10**6}, "model.max_model_len: 1000000 is more than the model's context"),
        ({"seq_size_per_block": 0}, "seq_size_per_block: engine.block_tokens: .* got '0'"),
        ({"gen_num_per_circle": 4}, r"gen_num_per_circle is not supported \(speculation\), got '4'"),
        ({"ptuning_path": "/p"}, r"ptuning_path is not supported \(P-tuning\)"),
        ({"lora_infos": {"a": "/a"}}, r"lora_infos is not supported \(LoRA\)"),
        ({"ckpt_path": "/elsewhere"}, "ckpt_path is '/elsewhere', but path is"),
    ],
)
def test_an_argument_of_model_config_that_is_wrong_or_not_computed_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelFactory.from_huggingface(DEMO_MODEL, model_config=ModelConfig(**given))


def test_model_configs_arguments_reach_the_engine() -> None:
    config = ModelConfig(
        ckpt_path=DEMO_MODEL, tokenizer_path=DEMO_MODEL, async_mode=True, weight_type=WEIGHT_TYPE.BF16,
        act_type="bf16", max_seq_len=128, seq_size_per_block=32, lora_infos={}, model_type="qwen_3",
    )  # fmt: skip
    model = ModelFactory.from_model_config(config)
    native = model.llm.engine.native
    model.stop()
    assert (native.dtype, native.max_model_len, native.block_tokens) == ("bfloat16", 128, 32)


def test_a_model_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_PATH", DEMO_MODEL)
    monkeypatch.setenv("MAX_SEQ_LEN", "64")
    model = ModelFactory.create_from_env()
    model.stop()
    assert model.llm.engine.native.max_model_len == 64


def test_a_model_that_is_not_there_is_said() -> None:
    with pytest.raises(ModelLoadError, match="model rtp/none: neither a directory here nor in the hub's cache"):
        ModelFactory.from_huggingface("rtp/none")
    with pytest.raises(ConfigError, match=r"model\.revision"):
        ModelFactory.from_huggingface(DEMO_MODEL, revision="main")
    for path in (None, "", " ", 5):
        with pytest.raises(ConfigError, match="path must be a directory, or a model's name, got"):
            ModelFactory.from_huggingface(path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model_config must be a ModelConfig, got"):
        ModelFactory.from_huggingface(DEMO_MODEL, model_config={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ckpt_path is not given"):
        ModelFactory.from_model_config(ModelConfig())


def test_unsupported_fields_have_their_own_type(pipeline: Pipeline) -> None:
    with pytest.raises(UnsupportedFieldError) as refused:
        pipeline("Hello", adapter_name="mine")
    assert (refused.value.param, refused.value.value) == ("adapter_name", "mine")
