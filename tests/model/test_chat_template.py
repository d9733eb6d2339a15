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
A_AND_B = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
HELLO = [{"role": "user", "content": "Hello"}]


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, special)


def test_messages_become_a_prompt() -> None:
    assert template(CHATML).render(HELLO) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template(CHATML).render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_a_final_message_is_left_open() -> None:
    begun = {"role": "assistant", "content": "Once upon "}
    assert template(CHATML).render([*HELLO, begun], continue_final_message=True) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nOnce upon "
    )
    parts = "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
    assert template(parts).render([{"role": "user", "content": A_AND_B}], continue_final_message=True) == "<a><b"
    assert template(CHATML).render([{**begun, "content": None}], continue_final_message=True).endswith("assistant\n")
    with pytest.raises(
        ChatTemplateError, match="continue_final_message: the chat template shows no content of the last"
    ):
        template("{{ messages[0].role }}").render(HELLO, continue_final_message=True)


def test_a_developer_is_the_system_where_no_developer_is_known() -> None:
    message = {"role": "developer", "content": "Be brief."}
    assert template(CHATML).render([message], add_generation_prompt=False).startswith("<|im_start|>system\n")
    knowing = "{% if messages[0].role == 'developer' %}{{ messages[0].content }}{% endif %}"
    assert template(knowing).render([message]) == "Be brief."


def test_what_a_template_reads() -> None:
    assert template("{{ documents }}").reads("documents", tools=False)
    assert not template("{{ my_documents }}").reads("documents", tools=False)


def test_special_tokens_tools_and_variables_reach_the_template() -> None:
    source = "{{ bos_token }}{{ tools | tojson }}{{ enable_thinking }}"
    rendered = template(source, bos_token="<s>").render(
        HELLO, tools=[{"name": "f"}], variables={"enable_thinking": False}
    )
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


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no ' + x) }}", "{{ {}[x].y }}", "{{ ('{' + x + '}').format() }}"]
)
def test_what_a_template_says_of_a_message_is_cut_and_valid_unicode(source: str) -> None:
    for content in ("x" * 300_000, "\ud800"):
        with pytest.raises(ChatTemplateError) as caught:
            template("{% set x = messages[0].content %}" + source).render([{"role": "user", "content": content}])
        assert len(caught.value.message.encode()) < 500


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
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls", "must be a list, got {}"),
        ([{"role": "assistant", "refusal": 5}], "messages[0].refusal", "must be a text or a list of parts, got 5"),
        ([*HELLO, {"role": "assistant", "content": "x", "prefix": True}], "messages[1].prefix", "is not supported"),
        ([{"role": "assistant", "function_call": {"name": "f"}}], "messages[0].function_call", "is not supported"),
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


@pytest.mark.parametrize("given", [None, "", " ", "\n", "null", "{}", {}, '{"x": 1', '{"x": "cut'])
def test_tool_calls_without_whole_arguments_have_none(given: Any) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": given}}]
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert template(source).render([{"role": "assistant", "content": None, "tool_calls": calls}]) == "{}"


def test_a_raw_line_break_in_an_argument_is_taken() -> None:
    calls = [{"function": {"name": "f", "arguments": '{"x": "a\nb"}'}}]
    source = "{{ messages[0].tool_calls[0].function.arguments.x }}"
    assert template(source).render([{"role": "assistant", "content": None, "tool_calls": calls}]) == "a\nb"


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (5, ""),
        ({"id": "c"}, ".function"),
        ({"id": "c", "type": "custom", "function": {"name": "f", "arguments": "{}"}}, ".type"),
        ({"function": {"arguments": "{}"}}, ".function.name"),
        ({"function": {"name": 5, "arguments": "{}"}}, ".function.name"),
        ({"function": {"name": "f"}}, ".function.arguments"),
        ({"function": {"name": "f", "arguments": "5"}}, ".function.arguments"),
        ({"function": {"name": "f", "arguments": '["Beijing"]'}}, ".function.arguments"),
        ({"function": {"name": "f", "arguments": [1]}}, ".function.arguments"),
        ({"function": {"name": "f", "arguments": 5}}, ".function.arguments"),
    ],
)
def test_a_malformed_tool_call_is_named(call: Any, param: str) -> None:
    good = {"function": {"name": "f", "arguments": "{}"}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [good, call]}]
    with pytest.raises(ChatTemplateError) as caught:
        template(CHATML).render(messages)
    assert caught.value.param == f"messages[1].tool_calls[1]{param}"
    assert caught.value.param in caught.value.message


def test_a_refusal_in_place_of_content_is_the_content() -> None:
    for content in ({}, {"content": None}, {"content": ""}, {"content": []}):
        messages = [{"role": "assistant", "refusal": "No.", **content}]
        assert template("{{ messages[0].content }}").render(messages) == "No."
    assert template("{{ messages[0].content }}").render([{"role": "assistant", "refusal": None}]) == ""


def test_a_refusal_in_the_history_is_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "No."}]
    assert template("{{ messages[0].content }}").render([{"role": "assistant", "content": parts}]) == "a\nNo."
    with pytest.raises(ChatTemplateError, match="must be a text part"):
        template(CHATML).render([{"role": "user", "content": [{"type": "refusal", "text": "x"}]}])


# --- What a template wants of content

LOOP = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}<{{ part.text }}>{% endfor %};{% endfor %}"
SELECT = (
    "{% for m in messages %}{{ m.role }}:{{ m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text')"
    " | map('trim') | join('+') }};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %};{% endfor %}"
)
OF_USERS = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content + '' }}"
    "{% endif %};{% endfor %}"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}{% endfor %}" + LOOP
)


TRIMMED = "{% for m in messages %}{{ m.role }}:{{ m.content | trim }};{% endfor %}"
AS_JSON = "{% for m in messages %}{{ m.role }}:{{ m.content | tojson }};{% endfor %}"
FIRST_ONLY = "{% for m in messages %}{{ m.role }}:{{ m.content[0].text }};{% endfor %}"


@pytest.mark.parametrize(
    ("source", "text", "part", "parts"),
    [
        (LOOP, "<a>", "<a>", "<a><b>"),
        (SELECT, "a", "a", "a+b"),
        (EITHER, "a", "<a>", "<a><b>"),
        (ALTERNATING, "<a>", "<a>", "<a><b>"),
        (TRIMMED, "a", "a", "a\nb"),
        (AS_JSON, '"a"', '"a"', '"a\\nb"'),
        (FIRST_ONLY, "a", "a", "a\nb"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_content_is_given_as_the_template_wants_it(source: str, text: str, part: str, parts: str, role: str) -> None:
    before = HELLO if role == "assistant" else []
    after = HELLO if role == "system" else []

    def rendered(content: Any) -> str:
        whole = template(source).render([*before, {"role": role, "content": content}, *after])
        return whole.partition(f"{role}:")[2].partition(";")[0]

    a, b = ({"type": "text", "text": text} for text in "ab")
    assert (rendered("a"), rendered([a]), rendered([a, b])) == (text, part, parts)


def test_each_role_has_a_form_of_its_own() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "tool", "content": "t"}]
    assert template(OF_USERS).render(messages) == "system:s;user:u;tool:t;"
    assert template(LOOP).render([{"role": "assistant", "content": None}, *HELLO]) == "assistant:<>;user:<Hello>;"


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


def test_templates_with_files_of_their_own_go_by_their_names(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    write(tmp_path, "chat_template.jinja", "plain")
    (tmp_path / "additional_chat_templates").mkdir()
    write(tmp_path / "additional_chat_templates", "tool_use.jinja", "tools")
    assert ChatTemplate.load(tmp_path).render(HELLO) == "plain"
    assert ChatTemplate.load(tmp_path).render(HELLO, tools=[{}]) == "tools"


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_a_template_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match=f"{path}: not UTF-8"):
        ChatTemplate.load(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelLoadError, match=f"{path}: Is a directory"):
        ChatTemplate.load(tmp_path)


def test_a_model_without_a_template_answers_completions_only(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="the model has no chat template; use completions"):
        ChatTemplate.load(tmp_path).render(HELLO)
