"""The chat template, and the same rendering in plain Python, cut at the borders of what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

END_OF_TURN, START_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
CONTROL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)  # ids 0, 1, 2; never part of a text
MARKUP_TOKENS = (THINK, THINK_END, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TOOLS_INTRO = "You may call one of these tools:"
NO_THOUGHT = f"{THINK}\n\n{THINK_END}\n\n"

# As Qwen3's: tools in the system turn, tool calls as <tool_call> blocks, tool results as a user's turn, thoughts of
# turns before the last question dropped. `enable_thinking`: false ends the prompt in an empty thought, true in an open one.
TEMPLATE = """\
{%- set ns = namespace(system='', last_query=-1) %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% endif %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (ns.system + '\\n\\n' if ns.system else '') + 'INTRO\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content if message.content is string else '' %}
        {%- if message.reasoning_content is string and message.reasoning_content %}
            {%- set content = '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 < ns.last_query and '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function if tool_call.function else tool_call %}
            {{- ('\\n' if content or not loop.first else '') + '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\\n' }}{% endif %}
{%- endif %}""".replace("INTRO", TOOLS_INTRO)

Message = dict[str, Any]  # role, content; an assistant's may have tool_calls


class Segment(NamedTuple):
    """A piece of a training document; the loss counts only where `is_target`."""

    text: str
    is_target: bool


def prompt_text(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, enable_thinking: bool | None = None
) -> str:
    """What the template makes of a conversation that waits for the assistant."""
    text = "".join(segment.text for segment in segments(messages, tools))
    suffix = {None: "", False: NO_THOUGHT, True: f"{THINK}\n"}[enable_thinking]
    return f"{text}{START_OF_TURN}assistant\n{suffix}"


def segments(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, enable_thinking: bool | None = None
) -> list[Segment]:
    """A training document: what the assistant says is a target, but for turns whose thought the template drops.

    `enable_thinking` is that of the last turn: its reply stands behind the prompt that the template then makes.
    """
    last_query = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    pieces: list[Segment] = []
    pending = system_turn(messages, tools)
    previous = ""
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            reply = assistant_text(message)
            _, mark, rest = reply.rpartition(THINK_END)
            is_target = not mark or index > last_query
            pending += f"{START_OF_TURN}assistant\n"
            if not is_target:
                reply = rest.lstrip("\n")
            elif index == len(messages) - 1 and enable_thinking is not None:
                start = f"{THINK}\n" if enable_thinking else NO_THOUGHT
                pending += start
                reply = reply.removeprefix(start)
            pieces += [Segment(pending, False), Segment(reply + END_OF_TURN, is_target)]
            pending = "\n"
        elif role == "tool":
            follows = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
            pending += "" if previous == "tool" else f"{START_OF_TURN}user"
            pending += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            pending += "" if follows else f"{END_OF_TURN}\n"
        elif index or role != "system":
            pending += f"{START_OF_TURN}{role}\n{message['content']}{END_OF_TURN}\n"
        previous = role
    return [*pieces, Segment(pending, False)]


def system_turn(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
    has_system = bool(messages) and messages[0]["role"] == "system"
    text = messages[0]["content"] if has_system else ""
    if not tools:
        return f"{START_OF_TURN}system\n{text}{END_OF_TURN}\n" if has_system else ""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = f"{text}\n\n" if text else ""
    return f"{START_OF_TURN}system\n{text}{TOOLS_INTRO}\n<tools>{lines}\n</tools>{END_OF_TURN}\n"


def assistant_text(message: Message) -> str:
    """Content and tool calls as the assistant writes them."""
    blocks = [message["content"]] if message["content"] else []
    return "\n".join(blocks + [tool_call_text(**call["function"]) for call in message.get("tool_calls", ())])


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'
