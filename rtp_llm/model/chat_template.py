"""Chat templates: messages to one prompt, with Hugging Face's semantics of Jinja.

Source: transformers' utils/chat_template_utils.py: a sandbox, trimmed blocks, break and continue, `raise_exception`,
`tojson` without HTML escapes, `strftime_now`, a transparent `generation` block.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from rtp_llm.errors import ChatTemplateError, ModelLoadError, excerpt, shortened
from rtp_llm.model.files import is_there, read_json_if_present, read_text
from rtp_llm.model.messages import ContentForm, checked_message, content_form
from rtp_llm.model.special_tokens import special_tokens

JINJA_FILE = "chat_template.jinja"
JSON_FILE = "chat_template.json"
MORE_FILES = "additional_chat_templates/*.jinja"  # by name
END_MARK = "\ue000end of the message\ue001"  # of private characters, which no template looks for
ROLES = ("system", "user", "assistant", "tool")
RESERVED = frozenset(  # what a request says elsewhere
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)


class ChatTemplate:
    """A model's template, compiled. Thread-safe."""

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str], origin: str = "chat template"
    ) -> None:
        """`sources`: template by name; "default" is used, and "tool_use" where tools are given.

        Raises:
            ModelLoadError: a template is not valid Jinja; names origin and line.
        """
        self._special_tokens = dict(special_tokens)
        self._sources = dict(sources)
        self._origin = origin
        self._templates: dict[str, jinja2.Template] = {}
        self._content_forms: dict[tuple[str, str], ContentForm] = {}  # by template and role, as they are asked for
        for name, source in sources.items():
            try:
                self._templates[name] = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelLoadError(f"{origin}: template {name!r}, line {error.lineno}: {error.message}") from error

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate:
        """From chat_template.jinja and additional_chat_templates/NAME.jinja, chat_template.json or tokenizer_config.json, the
        first that has one.

        A model without a template loads; rendering with it raises ChatTemplateError.

        Raises:
            ModelLoadError: a file is unreadable, or a template in it is not valid Jinja.
        """
        directory = Path(directory)
        jinja = directory / JINJA_FILE
        named = {path.stem: read_text(path) for path in sorted(directory.glob(MORE_FILES))}
        if is_there(jinja):
            named["default"] = read_text(jinja)
        if named:
            return cls(named, special_tokens(directory), str(jinja if is_there(jinja) else directory))
        for name in (JSON_FILE, "tokenizer_config.json"):
            template = read_json_if_present(directory / name).get("chat_template")
            if template is not None:
                return cls(_named(template, directory / name), special_tokens(directory), str(directory / name))
        return cls({}, special_tokens(directory), str(directory))

    def replaced(self, source: Any) -> ChatTemplate:
        """The template `source` with this model's special tokens.

        Raises:
            ChatTemplateError: it is no text, or not valid Jinja.
        """
        if not isinstance(source, str):
            text = f"chat_template must be a text, got {shortened(source)}"
            raise ChatTemplateError(text, param="chat_template", value=source)
        try:
            return ChatTemplate({"default": source}, self._special_tokens)
        except ModelLoadError as error:
            raise ChatTemplateError(error.message, param="chat_template", value=source) from error

    def source_for(self, *, tools: bool) -> str:
        """The source that renders with tools, or without; empty if there is none."""
        return self._sources.get("tool_use" if tools else "default") or self._sources.get("default", "")

    def reads(self, variable: str, *, tools: bool) -> bool:
        """Whether the template that renders with tools, or without, has this name."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source_for(tools=tools)) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `variables` reach the template by name, as `enable_thinking` of Qwen3. `continue_final_message`: it ends
        with the last message's content, which the answer goes on with.

        Raises:
            ChatTemplateError: the model has no template, a message or a variable is malformed, or the template refuses the
                messages.
        """
        checked = _checked_variables({} if variables is None else variables)
        if not messages:
            raise ChatTemplateError("messages must hold at least one message, got []", param="messages", value=[])
        names = ("tool_use", "default") if tools else ("default",)
        name = next((name for name in names if name in self._templates), None)
        if name is None:
            raise ChatTemplateError(
                f"{self._origin}: the model has no chat template; use completions", param="messages"
            )
        plain = [
            checked_message(
                f"messages[{index}]", self._as_known(message, tools=bool(tools)), partial(self._content_form, name)
            )
            for index, message in enumerate(messages)
        ]
        context = {
            **self._special_tokens,
            **checked,
            "messages": [*plain[:-1], _with_mark(plain[-1])] if continue_final_message else plain,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        rendered = self._rendered(name, context)
        if not continue_final_message:
            return rendered
        begun, mark, _ = rendered.rpartition(END_MARK)
        if not mark:
            raise ChatTemplateError(
                "continue_final_message: the chat template shows no content of the last message", param="messages"
            )
        return begun

    def _rendered(self, name: str, context: Mapping[str, Any]) -> str:
        try:
            return self._templates[name].render(context)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"the chat template refused the messages: {excerpt(str(error.message))}", param="messages"
            ) from error
        except Exception as error:  # a template is a program: whatever its expressions raise
            raise ChatTemplateError(
                f"the chat template failed on the messages: {type(error).__name__}: {excerpt(str(error))}",
                param="messages",
            ) from error

    def _as_known(self, message: object, *, tools: bool) -> object:
        """A developer's message is a system's where the template knows no developers: OpenAI's newer name of the role."""
        if not isinstance(message, Mapping) or message.get("role") != "developer":
            return message
        return message if self.reads("developer", tools=tools) else {**message, "role": "system"}

    def _content_form(self, name: str, role: str) -> ContentForm:
        """Of messages of `role` in the template `name`."""
        key = (name, role if role in ROLES else "")
        if key not in self._content_forms:
            context = {**self._special_tokens, "tools": None, "add_generation_prompt": True}
            template = self._templates[name]
            self._content_forms[key] = content_form(lambda messages: template.render(context, messages=messages), role)
        return self._content_forms[key]


def _with_mark(message: Mapping[str, Any]) -> dict[str, Any]:
    """Its content, which ends with END_MARK."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + END_MARK}
    *parts, last = content or [{"type": "text", "text": ""}]
    return {**message, "content": [*parts, {**last, "text": last["text"] + END_MARK}]}


def _checked_variables(variables: Any) -> Mapping[str, Any]:
    where = "chat_template_kwargs"
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        text = f"{where} must be an object of variables by name, got {shortened(variables)}"
        raise ChatTemplateError(text, param=where, value=variables)
    for name, value in variables.items():
        if name in RESERVED:
            text = f"{where}.{name} is not allowed: the name is reserved, got {shortened(value)}"
            raise ChatTemplateError(text, param=f"{where}.{name}", value=value)
    return variables


def _named(template: Any, path: Path) -> dict[str, str]:
    """A template, or a list of {"name", "template"}."""
    if isinstance(template, str):
        return {"default": template}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    except (TypeError, KeyError) as error:
        raise ModelLoadError(
            f"{path}: chat_template must be a text or a list of named texts, found {template!r}"
        ) from error


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %}: marks what the assistant says, for training. Renders as its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
