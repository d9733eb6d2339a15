import json
import re
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import ChatTemplateError, ModelLoadError
from rtp_llm.model.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, special)


def test_messages_become_a_prompt() -> None:
    assert template(CHATML).render(HELLO) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template(CHATML).render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_special_tokens_tools_and_variables_reach_the_template() -> None:
    source = "{{ bos_token }}{{ tools | tojson }}{{ enable_thinking }}"
    rendered = template(source, bos_token="<s>").render(HELLO, tools=[{"name": "f"}], enable_thinking=False)
    assert rendered == '<s>[{"name": "f"}]False'
    assert template("{{ tools is none }}").render(HELLO) == "True"


def test_tojson_escapes_no_html_and_keeps_unicode() -> None:
    assert template("{{ messages[0].content | tojson }}").render([{"role": "user", "content": "<ü>"}]) == '"<ü>"'
    assert template("{{ {'b': 1, 'a': 2} | tojson(indent=2) }}").render(HELLO) == json.dumps({"b": 1, "a": 2}, indent=2)


def test_blocks_are_trimmed_and_loops_controlled() -> None:
    source = "{% for m in messages %}\n  {% if loop.index > 1 %}\n  {% break %}\n  {% endif %}\n{{ m.content }}\n{% endfor %}\n"
    assert template(source).render([*HELLO, *HELLO]) == "Hello\n"


def test_generation_blocks_render_as_their_body() -> None:
    assert template("{% generation %}{{ messages[0].content }}{% endgeneration %}!").render(HELLO) == "Hello!"


def test_strftime_now_is_the_date_of_today() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", template("{{ strftime_now('%Y-%m-%d') }}").render(HELLO))


def test_a_template_that_refuses_says_why() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ChatTemplateError, match="refused the messages: roles must alternate") as caught:
        template(source).render(HELLO)
    assert caught.value.param == "messages"


def test_a_template_that_fails_is_the_requests_error() -> None:
    with pytest.raises(ChatTemplateError, match="failed on the messages: TypeError"):
        template("{{ messages[0].content + 1 }}").render(HELLO)
    with pytest.raises(ChatTemplateError):
        template("{{ nothing.at.all }}").render(HELLO)


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(ChatTemplateError):
        template("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(HELLO)
    with pytest.raises(ChatTemplateError):
        template("{{ messages.append(1) }}").render(HELLO)


def test_a_template_that_is_not_jinja_is_named_with_its_line() -> None:
    with pytest.raises(ModelLoadError, match="template 'default', line 2"):
        template("a\n{% for %}")


# --- Messages


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([], ""),
        (None, ""),
    ],
)
def test_content_parts_are_flattened(content: Any, text: str) -> None:
    assert template("[{{ messages[0].content }}]").render([{"role": "assistant", "content": content}]) == f"[{text}]"


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        ([], "messages", "at least one message"),
        ([{"content": "x"}], "messages[0].role", "must be a text, got None"),
        ([*HELLO, {"role": 3}], "messages[1].role", "must be a text, got 3"),
        ([{"role": "user"}], "messages[0].content", "of role 'user' is required"),
        ([{"role": "user", "content": 5}], "messages[0].content", "must be a text or a list of parts, got 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]", "must be a text part"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "must be a text part, got 'x'"),
        (["hi"], "messages[0]", "must be an object, got 'hi'"),
        ([{"role": "assistant", "tool_calls": 5}], "messages[0].tool_calls", "must be a list, got 5"),
    ],
)
def test_a_malformed_message_is_named(messages: list[Any], param: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message) as caught:
        template(CHATML).render(messages)
    assert caught.value.param == param
    assert caught.value.http_status == 400


def test_arguments_of_tool_calls_are_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    source = "{{ messages[0].tool_calls[0].function.arguments.x }}"
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert template(source).render([message]) == "1"
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}
    call["function"] = {"name": "f", "arguments": "{"}
    with pytest.raises(ChatTemplateError, match="arguments are not JSON"):
        template(source).render([message])


def test_the_callers_messages_are_left_alone() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    template(CHATML).render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


# --- Files


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_template_is_found_where_hugging_face_puts_it(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "config {{ eos_token }}", "eos_token": "</s>"})
    assert ChatTemplate.load(tmp_path).render(HELLO) == "config </s>"
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert ChatTemplate.load(tmp_path).render(HELLO) == "json"
    write(tmp_path, "chat_template.jinja", "jinja {{ eos_token }}")
    assert ChatTemplate.load(tmp_path).render(HELLO) == "jinja </s>"


def test_of_several_templates_that_for_tools_is_used_with_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert ChatTemplate.load(tmp_path).render(HELLO) == "plain"
    assert ChatTemplate.load(tmp_path).render(HELLO, tools=[{}]) == "tools"
    write(tmp_path, "tokenizer_config.json", {"chat_template": 3})
    with pytest.raises(ModelLoadError, match="chat_template must be a text or a list of named texts, found 3"):
        ChatTemplate.load(tmp_path)


def test_a_model_without_a_template_answers_completions_only(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="the model has no chat template; use completions"):
        ChatTemplate.load(tmp_path).render(HELLO)
