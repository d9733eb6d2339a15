"""Tokenizer, detokenization and chat templates against transformers, live."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.tokenizer import Tokenizer
from tests.model.tokenizer_files import SENTENCES, byte_level, sentencepiece

DEMO = Path(__file__).resolve().parents[2] / "rtp_llm" / "demo"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "<|im_end|> ünd <tags> & 'quotes'"},
]
TEMPLATE = (
    "{%- for m in messages %}\n    {%- if loop.first and m.role == 'system' %}\n{{ bos_token }}[{{ m.content }}]\n"
    "    {%- elif m.role == 'user' %}\n{{ m | tojson }}\n    {%- else %}\n{% generation %}{{ m.content | trim }}"
    "{% endgeneration %}\n    {%- endif %}\n{%- endfor %}\n{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{{ 'go' if add_generation_prompt }}"
)
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "parameters": {"a": "<ü>"}}}]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_ids_and_text_are_those_of_transformers(make: Any, tmp_path: Path) -> None:
    ours, theirs = Tokenizer.load(make(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    for text in SENTENCES:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_demo_models_prompts_are_those_of_transformers(add_generation_prompt: bool) -> None:
    theirs = AutoTokenizer.from_pretrained(DEMO).apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert ChatTemplate.load(DEMO).render(CONVERSATION, add_generation_prompt=add_generation_prompt) == theirs


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_renders_as_in_transformers(tools: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_level(tmp_path))
    theirs = tokenizer.apply_chat_template(
        CONVERSATION, chat_template=TEMPLATE, tools=tools, tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate({"default": TEMPLATE}, {"bos_token": "<s>", "eos_token": "</s>"})
    assert ours.render(CONVERSATION, tools=tools) == theirs
