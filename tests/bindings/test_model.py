import hashlib
from array import array
from pathlib import Path

import pytest

from rtp_llm._native import _engine
from rtp_llm.errors import InvalidRequestError, RtpLlmError, UnavailableError
from rtp_llm.model.config import read_model_config
from tests.model.files import load_weights, pattern, write_config, write_safetensors


@pytest.fixture
def device() -> object:
    return _engine.open_device("cpu")


def native_config(directory: Path, **fields: object) -> object:
    return _engine.ModelConfig(**read_model_config(write_config(directory, **fields)).native_fields())


def expected_shapes(weights: object) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.shape) for tensor in weights.expected()}  # type: ignore[attr-defined]


def test_native_errors_are_the_packages(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="head_dim must be even and positive, got 5"):
        native_config(tmp_path, head_dim=5)
    with pytest.raises(UnavailableError, match="ISA 'sse9' is not available, this machine has"):
        _engine.open_device("cpu", isa="sse9")
    with pytest.raises(ValueError, match="unknown dtype"):
        _engine.KvLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="float8", block_tokens=4)
    assert issubclass(InvalidRequestError, RtpLlmError)


def test_a_config_is_what_was_read(tmp_path: Path) -> None:
    config = native_config(tmp_path, hidden_act="gelu_new", rope_theta=5e5)
    assert (config.hidden_act, config.rope_theta, config.dtype) == ("gelu_pytorch_tanh", 5e5, "float32")  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="hidden_act 'relu'"):
        _engine.ModelConfig(hidden_act="relu")
    with pytest.raises(AttributeError):
        _engine.ModelConfig(hiden_size=3)


def test_files_load_into_the_engine(tmp_path: Path, device: object) -> None:
    config = native_config(tmp_path)
    shapes = expected_shapes(_engine.Weights(device, config))
    digests = set()
    for dtype in ("F32", "F32", "BF16", "F16"):
        tensors = {name: (dtype, shape, pattern(name, shape, dtype)) for name, shape in shapes.items()}
        write_safetensors(tmp_path / "model.safetensors", tensors)
        weights = _engine.Weights(device, config)
        load_weights(tmp_path, read_model_config(tmp_path), weights)
        digests.add(weights.digest)
    assert len(digests) == 3  # one a dtype, as the bytes differ
    assert {len(digest) for digest in digests} == {64}


def test_half_precision_is_widened_exactly(tmp_path: Path, device: object) -> None:
    halves = bytes(256 * 2)
    halves = b"".join((0x3C00 + i).to_bytes(2, "little") for i in range(8))  # 1.0 and the next seven
    floats = array("f", [1.0 + i / 1024 for i in range(8)]).tobytes()
    digests = set()
    for dtype, norm in (("float16", halves), ("float32", floats)):
        weights = _engine.Weights(device, native_config(tmp_path))
        for name, shape in expected_shapes(weights).items():
            if name == "model.norm.weight":
                weights.write(name, 0, 8, 1, dtype, norm)
            else:
                width = shape[1] if len(shape) == 2 else 1
                weights.write(name, 0, shape[0], width, "float32", bytes(shape[0] * width * 4))
        weights.finish()
        digests.add(weights.digest)
    assert len(digests) == 1


def test_a_buffer_of_the_wrong_size_is_refused(tmp_path: Path, device: object) -> None:
    weights = _engine.Weights(device, native_config(tmp_path))
    with pytest.raises(InvalidRequestError, match="2 rows of 8 float32 are 64 bytes, the buffer has 60"):
        weights.write("lm_head.weight", 0, 2, 8, "float32", bytes(60))
    with pytest.raises(InvalidRequestError, match="the buffer is not contiguous"):
        weights.write("lm_head.weight", 0, 2, 8, "float32", memoryview(bytes(128))[::2])
    with pytest.raises(InvalidRequestError, match="unknown dtype 'int3'"):
        weights.write("lm_head.weight", 0, 2, 8, "int3", bytes(64))


def test_rows_read_from_a_file_are_those_written_from_memory(tmp_path: Path, device: object) -> None:
    config = native_config(tmp_path)
    written, read = _engine.Weights(device, config), _engine.Weights(device, config)
    for name, shape in expected_shapes(written).items():
        width = shape[1] if len(shape) == 2 else 1
        data = pattern(name, tuple(shape))
        written.write(name, 0, shape[0], width, "float32", data)
        (tmp_path / "rows").write_bytes(b"before" + data)
        with (tmp_path / "rows").open("rb") as file:
            for row in range(shape[0]):
                assert read.read(name, row, 1, width, "float32", file.fileno(), 6 + row * width * 4) == width * 4
    written.finish()
    read.finish()
    assert read.digest == written.digest


def test_a_file_that_ends_among_the_rows_is_no_error_and_one_that_cannot_be_read_is(
    tmp_path: Path, device: object
) -> None:
    weights = _engine.Weights(device, native_config(tmp_path))
    (tmp_path / "rows").write_bytes(bytes(100))
    with (tmp_path / "rows").open("rb") as file:
        assert weights.read("lm_head.weight", 0, 11, 8, "float32", file.fileno(), 10) == 90
        with pytest.raises(InvalidRequestError, match="row 0 comes twice"):
            weights.read("lm_head.weight", 0, 1, 8, "float32", file.fileno(), 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        weights.read("model.embed_tokens.weight", 0, 11, 8, "float32", -1, 0)


def test_random_weights_are_a_function_of_the_seed(tmp_path: Path, device: object) -> None:
    def digest(seed: int) -> str:
        weights = _engine.Weights(device, native_config(tmp_path))
        load_weights(tmp_path, read_model_config(tmp_path), weights, load_format="dummy", seed=seed)
        return str(weights.digest)

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_a_scorer_refuses_tokens_that_the_model_does_not_know(tmp_path: Path, device: object) -> None:
    weights = _engine.Weights(device, native_config(tmp_path))
    weights.write_random(1)
    weights.finish()
    scorer = _engine.Scorer(device, _engine.Decoder(device, weights), max_tokens=16)
    assert len(scorer.logits([1, 2, 3])) == 3 * 11 * 4
    with pytest.raises(InvalidRequestError, match="token id 11 out of range, the vocabulary has 11"):
        scorer.logits([11])


def test_allocations_are_listed_with_their_tags(tmp_path: Path, device: object) -> None:
    weights = _engine.Weights(device, native_config(tmp_path))
    tags = {tag for _, _, tag in device.allocations()}  # type: ignore[attr-defined]
    assert "weights.inv_freq" in tags
    del weights
    assert not device.allocations()  # type: ignore[attr-defined]


# --- KV layouts and hashes


def layout(**fields: object) -> object:
    shape = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 4, "dtype": "float32", "block_tokens": 16, **fields}
    return _engine.KvLayout(**shape)


def test_layouts_are_compared_by_name() -> None:
    here, there = layout(), layout(block_tokens=64)
    texts = [each.canonical_json("digest") for each in (here, there)]  # type: ignore[attr-defined]
    assert _engine.describe_difference(*texts) == "groups[0].block_tokens: 16 here, 64 there"
    assert here.fingerprint("digest") == hashlib.sha256(texts[0].encode()).hexdigest()  # type: ignore[attr-defined]
    assert here.block_bytes == 2 * 2 * 2 * 16 * 4 * 4  # type: ignore[attr-defined]


def test_block_hashes_are_sha256_of_salt_and_tokens() -> None:
    salt = _engine.block_hash_salt("digest")
    tokens = list(range(40))
    text = salt + b"".join(token.to_bytes(4, "little") for token in tokens)
    hashes = _engine.block_hashes(salt, tokens, 16)
    assert hashes == b"".join(hashlib.sha256(text[: len(salt) + 64 * n]).digest()[:16] for n in (1, 2))
