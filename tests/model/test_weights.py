import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import ModelLoadError
from rtp_llm.model import weights
from rtp_llm.model.checkpoint import INDEX
from rtp_llm.model.config import ModelConfig, read_generation_defaults, read_model_config
from rtp_llm.model.weights import untied_from_its_embedding
from tests.model.files import ITEM_BYTES, Recorder, load_weights, pattern, write_config, write_safetensors

SHAPES = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}
TENSORS = {name: ("F32", shape, pattern(name, shape)) for name, shape in SHAPES.items()}
FILE = "model.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return read_model_config(write_config(tmp_path))


def load(directory: Path, config: ModelConfig, **options: Any) -> Recorder:
    sink = Recorder(SHAPES)
    load_weights(directory, config, sink, **options)
    return sink


def refused(directory: Path, config: ModelConfig) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(directory, config)
    return str(caught.value)


def test_every_tensor_arrives_whole(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    sink = load(tmp_path, config)
    assert sink.data == {name: data for name, (_, _, data) in TENSORS.items()}
    assert set(sink.dtypes.values()) == {"float32"}
    assert sink.finished


@pytest.mark.parametrize("chunk_bytes", [1, 16, 35, 50])
def test_chunks_of_float16_are_whole_rows(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", chunk_bytes)
    tensors = {name: ("F16", shape, pattern(name, shape, "F16")) for name, shape in SHAPES.items()}
    write_safetensors(tmp_path / FILE, tensors)
    sink = load(tmp_path, config)
    assert sink.data == {name: data for name, (_, _, data) in tensors.items()}
    rows = max(1, chunk_bytes // 16)
    assert [chunk for chunk in sink.chunks if chunk[0] == "lm_head.weight"] == [
        ("lm_head.weight", row, min(rows, 11 - row)) for row in range(0, 11, rows)
    ]


@pytest.mark.parametrize("piece_bytes", [1, 64, 100])
def test_pieces_of_a_tensor_arrive_whichever_thread_reads_them(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(weights, "PIECE_BYTES", piece_bytes)
    write_safetensors(tmp_path / FILE, TENSORS)
    sink = load(tmp_path, config)
    assert sink.data == {name: data for name, (_, _, data) in TENSORS.items()}
    rows = max(1, piece_bytes // 32)
    assert sorted(row for name, row, _ in sink.chunks if name == "lm_head.weight") == list(range(0, 11, rows))


def test_all_three_types_arrive_as_stored(tmp_path: Path, config: ModelConfig) -> None:
    dtypes = dict(zip(SHAPES, ["F32", "BF16", "F16"], strict=True))
    tensors = {name: (dtypes[name], shape, pattern(name, shape, dtypes[name])) for name, shape in SHAPES.items()}
    write_safetensors(tmp_path / FILE, tensors)
    sink = load(tmp_path, config)
    assert [sink.dtypes[name] for name in SHAPES] == ["float32", "bfloat16", "float16"]
    assert sink.data == {name: data for name, (_, _, data) in tensors.items()}


def test_shards_are_found_by_the_index(tmp_path: Path, config: ModelConfig) -> None:
    names = list(TENSORS)
    write_safetensors(tmp_path / "a.safetensors", {name: TENSORS[name] for name in names[:1]})
    write_safetensors(tmp_path / "b.safetensors", {name: TENSORS[name] for name in names[1:]})
    write_safetensors(tmp_path / "other.safetensors", {"unrelated": ("F32", (1,), b"1234")})
    weight_map = {names[0]: "a.safetensors", names[1]: "b.safetensors", names[2]: "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert len(load(tmp_path, config).data) == 3
    (tmp_path / "b.safetensors").unlink()
    assert "b.safetensors: No such file" in refused(tmp_path, config)
    (tmp_path / INDEX).write_text('{"weight_map": [1]}')
    assert "weight_map must map tensors to files" in refused(tmp_path, config)


def test_progress_counts_to_the_end(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    seen: list[tuple[int, int]] = []
    load(tmp_path, config, progress=lambda done, total: seen.append((done, total)))
    total = 2 * 11 * 8 * 4 + 8 * 4
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_named_with_what_was_expected_and_found(
    tmp_path: Path, config: ModelConfig, size: int
) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    whole = (tmp_path / FILE).read_bytes()
    cut = whole[: size if size >= 0 else len(whole) + size]
    (tmp_path / FILE).write_bytes(cut)
    message = refused(tmp_path, config)
    assert str(tmp_path / FILE) in message
    assert "truncated" in message
    if size == -1:
        assert f"expected {len(whole)} bytes, found {len(whole) - 1}" in message


def test_a_file_that_shrinks_while_it_is_read_is_truncated(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    sink = Recorder(SHAPES)
    expected = sink.expected

    def shrink() -> list[Any]:
        with (tmp_path / FILE).open("r+b") as file:
            file.truncate(300)
        return expected()

    monkeypatch.setattr(sink, "expected", shrink)
    with pytest.raises(ModelLoadError, match=r"truncated: expected .* found 300"):
        load_weights(tmp_path, config, sink)
    assert not sink.finished


def test_a_mis_shaped_tensor_is_named_before_anything_is_written(tmp_path: Path, config: ModelConfig) -> None:
    bad = {**TENSORS, "lm_head.weight": ("F32", (11, 9), pattern("", (11, 9)))}
    write_safetensors(tmp_path / FILE, bad)
    sink = Recorder(SHAPES)
    message = rf"{FILE}: tensor lm_head.weight: expected shape \[11, 8\], found \[11, 9\]"
    with pytest.raises(ModelLoadError, match=message):
        load_weights(tmp_path, config, sink)
    assert not sink.chunks


def test_missing_tensors_are_named_and_counted(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, {"model.norm.weight": TENSORS["model.norm.weight"]})
    assert "2 of 3 tensors are missing: model.embed_tokens.weight, lm_head.weight" in refused(tmp_path, config)


def test_an_unsupported_type_is_named(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, {**TENSORS, "lm_head.weight": ("I8", (11, 8), bytes(88))})
    assert "tensor lm_head.weight: dtype I8 is not supported, there are F32, BF16, F16" in refused(tmp_path, config)


def test_a_tensor_that_the_model_does_not_have_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, {**TENSORS, "model.layers.0.self_attn.q_proj.bias": ("F32", (8,), bytes(32))})
    assert "q_proj.bias: a Qwen3ForCausalLM with this config.json has none" in refused(tmp_path, config)


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    write_safetensors(tmp_path / "b.safetensors", {"lm_head.weight": TENSORS["lm_head.weight"]})
    assert "b.safetensors: tensor lm_head.weight comes twice" in refused(tmp_path, config)


def test_what_the_engine_computes_itself_is_skipped(tmp_path: Path) -> None:
    config = read_model_config(write_config(tmp_path, tie_word_embeddings=True))
    shapes = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (2,), bytes(8))}
    write_safetensors(tmp_path / FILE, {**TENSORS, **buffer})
    sink = Recorder(shapes)
    load_weights(tmp_path, config, sink)
    assert set(sink.data) == set(shapes)


@pytest.mark.parametrize("dtype", ["F32", "F64", "I64", "BOOL", "F4"])
@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",
        "model.layers.0.self_attn.bias",
    ],
)
def test_a_buffer_that_the_engine_computes_may_be_of_any_type(
    tmp_path: Path, config: ModelConfig, name: str, dtype: str
) -> None:
    size = 1 if dtype == "F4" else 2 * ITEM_BYTES.get(dtype, 4)
    write_safetensors(tmp_path / FILE, {**TENSORS, name: (dtype, (2,), bytes(size))})
    assert set(load(tmp_path, config).data) == set(SHAPES)


@pytest.mark.parametrize(
    "stray", ["consolidated", "consolidated.00", "adapter_model", "optimizer", "anything-beside-a-whole-model"]
)
def test_files_beside_the_model_are_not_read(tmp_path: Path, config: ModelConfig, stray: str) -> None:
    (tmp_path / f"{stray}.safetensors").write_bytes(b"not even safetensors")
    write_safetensors(tmp_path / FILE, TENSORS)
    assert set(load(tmp_path, config).data) == set(SHAPES)


def test_other_formats_beside_parts_without_an_index_are_not_read(tmp_path: Path, config: ModelConfig) -> None:
    names = list(TENSORS)
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {name: TENSORS[name] for name in names[:1]})
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {name: TENSORS[name] for name in names[1:]})
    for stray in ("consolidated", "adapter_model"):
        write_safetensors(tmp_path / f"{stray}.safetensors", {"tok_embeddings.weight": ("F32", (1,), b"1234")})
    assert set(load(tmp_path, config).data) == set(SHAPES)
    write_safetensors(tmp_path / "model.fp16.safetensors", TENSORS)
    (tmp_path / "._model-00001-of-00002.safetensors").write_bytes(b"a file system's notes")
    (tmp_path / "broken-off.safetensors").write_bytes(b"")
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert set(load(tmp_path, config).data) == set(SHAPES)


def test_a_hidden_file_is_no_part(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / "weights.safetensors", TENSORS)
    (tmp_path / "._weights.safetensors").write_bytes(b"a file system's notes")
    assert set(load(tmp_path, config).data) == set(SHAPES)


def test_parts_may_lie_in_folders_under_one_name(tmp_path: Path, config: ModelConfig) -> None:
    other = {"lm_head.weight": ("F32", (11, 8), bytes(11 * 8 * 4))}
    for folder, tensors in (("a", {**TENSORS, **other}), ("b", {"lm_head.weight": TENSORS["lm_head.weight"]})):
        (tmp_path / folder).mkdir()
        write_safetensors(tmp_path / folder / FILE, tensors)
    places = {name: f"{'b' if name == 'lm_head.weight' else './a'}/{FILE}" for name in SHAPES}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert load(tmp_path, config).data == {name: data for name, (_, _, data) in TENSORS.items()}


@pytest.mark.parametrize("file", ["", ".", "parts", "a\0b", "gone.safetensors"])
def test_what_the_index_names_and_is_no_file_is_named(tmp_path: Path, config: ModelConfig, file: str) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, file)}))
    assert refused(tmp_path, config).startswith(str(tmp_path / file))


def test_a_link_to_nothing_is_no_file_that_is_not_there(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    for name in (INDEX, "generation_config.json"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert "No such file" in refused(tmp_path, config)
    with pytest.raises(ModelLoadError, match=r"generation_config\.json: No such file"):
        read_generation_defaults(tmp_path)


def test_the_index_says_which_of_two_files_a_tensor_is_read_from(tmp_path: Path, config: ModelConfig) -> None:
    other = {"lm_head.weight": ("F32", (11, 8), bytes(11 * 8 * 4))}
    write_safetensors(tmp_path / "a.safetensors", {**TENSORS, **other})
    write_safetensors(tmp_path / "b.safetensors", {"lm_head.weight": TENSORS["lm_head.weight"]})
    for place in ("a", "b"):
        places = {name: f"{place if name == 'lm_head.weight' else 'a'}.safetensors" for name in SHAPES}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**places, "unrelated": "b.safetensors"}}))
        right = other if place == "a" else TENSORS
        assert load(tmp_path, config).data["lm_head.weight"] == right["lm_head.weight"][2]


def test_a_tensor_is_found_where_it_lies_though_the_index_says_another_file(
    tmp_path: Path, config: ModelConfig
) -> None:
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    write_safetensors(tmp_path / "b.safetensors", {})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "b.safetensors", "x": "a.safetensors"}}))
    assert set(load(tmp_path, config).data) == set(SHAPES)


def test_the_index_of_parts_that_are_gone_does_not_hide_the_whole_model(tmp_path: Path, config: ModelConfig) -> None:
    write_safetensors(tmp_path / FILE, TENSORS)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, "model-00001-of-00002.safetensors")}))
    assert set(load(tmp_path, config).data) == set(SHAPES)


TIED = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}


@pytest.mark.parametrize("file", [FILE, "other.safetensors"])
def test_a_tied_matrix_may_be_stored_as_the_head(tmp_path: Path, file: str) -> None:
    config = read_model_config(write_config(tmp_path, tie_word_embeddings=True))
    write_safetensors(tmp_path / file, {name: TENSORS[name] for name in ("lm_head.weight", "model.norm.weight")})
    assert untied_from_its_embedding(tmp_path, config, "safetensors") == config
    sink = Recorder(TIED)
    load_weights(tmp_path, config, sink)
    assert sink.data["model.embed_tokens.weight"] == TENSORS["lm_head.weight"][2]


def test_a_head_that_equals_the_tied_embedding_is_the_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 100)
    config = read_model_config(write_config(tmp_path, tie_word_embeddings=True))
    write_safetensors(tmp_path / FILE, {**TENSORS, "lm_head.weight": TENSORS["model.embed_tokens.weight"]})
    assert untied_from_its_embedding(tmp_path, config, "safetensors") == config


@pytest.mark.parametrize("place", [0, 99, 100, 11 * 8 * 4 - 1])
def test_a_head_that_differs_from_the_tied_embedding_is_a_tensor_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 100)
    config = read_model_config(write_config(tmp_path, tie_word_embeddings=True))
    data = bytearray(TENSORS["model.embed_tokens.weight"][2])
    data[place] ^= 1
    write_safetensors(tmp_path / FILE, {**TENSORS, "lm_head.weight": ("F32", (11, 8), bytes(data))})
    untied = untied_from_its_embedding(tmp_path, config, "safetensors")
    assert untied == replace(config, tie_word_embeddings=False)
    assert load(tmp_path, untied).data["lm_head.weight"] == data
    assert untied_from_its_embedding(tmp_path, config, "dummy") == config


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, r"\[2, 2\] F32 are 16 bytes, the header says 12"),
        ({"dtype": "F32", "shape": [2]}, "bad header entry"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "bad header entry"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "bad header entry"),
        ([], "bad header entry"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, config: ModelConfig, entry: Any, message: str) -> None:
    text = json.dumps({"model.norm.weight": entry}).encode()
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path, config)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    for header in (b"xxxx", b"[" * 100_000):
        (tmp_path / FILE).write_bytes(struct.pack("<Q", len(header)) + header)
        assert "the header is not JSON" in refused(tmp_path, config)
    (tmp_path / FILE).write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))
    assert "a header of 1152921504606846976 bytes" in refused(tmp_path, config)
    write_safetensors(tmp_path / FILE, TENSORS)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"more")
    assert "no safetensors: expected" in refused(tmp_path, config)


@pytest.mark.parametrize(
    "places",
    [[(0, 8), (0, 8), (8, 16)], [(0, 8), (4, 12), (12, 16)], [(0, 8), (12, 16)]],
    ids=["same", "overlap", "hole"],
)
def test_tensors_that_overlap_or_leave_a_hole_are_refused(
    tmp_path: Path, config: ModelConfig, places: list[tuple[int, int]]
) -> None:
    header = {
        f"t{number}": {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for number, (begin, end) in enumerate(places)
    }
    text = json.dumps(header).encode()
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    assert f"{FILE}: no safetensors: " in refused(tmp_path, config)


def test_a_directory_without_weights_is_named(tmp_path: Path, config: ModelConfig) -> None:
    message = refused(tmp_path, config)
    assert str(tmp_path) in message
    assert "neither *.safetensors nor pytorch_model.bin" in message


def test_dummy_weights_need_no_files(tmp_path: Path, config: ModelConfig) -> None:
    sink = load(tmp_path, config, load_format="dummy", seed=5)
    assert sink.seed == 5
    assert sink.finished


def test_an_unknown_load_format_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(ModelLoadError, match="load_format 'gguf' is unknown"):
        load(tmp_path, config, load_format="gguf")
