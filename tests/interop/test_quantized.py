"""Weights of four and eight bits are read as transformers unpacks them.

The reference is transformers' own unpacking, and its model of what it unpacked.
"""

from __future__ import annotations

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from lmx import load
from lmx.__main__ import main
from lmx.core.errors import DONE, DataError, UserError
from lmx.interop.hf_quantized import unpacked
from lmx.interop.safetensors_file import SINGLE, Safetensors

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
CODES = {
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float32": "F32",
    "bfloat16": "BF16",
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
KERNEL = "model.layers.0.mlp.gate_proj.weight"
BLOCK = [16, 20]  # of 32 x 48 and the like: the last ones are smaller
BLOCKWISE = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": BLOCK,
}


def write(folder, tensors):
    """Writes tensors of any dtypes into one file."""
    header, at = {}, 0
    for name, value in tensors.items():
        span = [at, at + value.nbytes]
        code = CODES[str(value.dtype)]
        header[name] = {"dtype": code, "shape": value.shape, "data_offsets": span}
        at = span[1]
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(v).tobytes() for v in tensors.values())
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return Safetensors(folder)


def mxfp4_tensors(*, experts=3, outputs=6, groups=2, scales=(0, 254)):
    """Returns random blocks, and scales between two, whose products are finite."""
    random, shape = np.random.default_rng(0), (experts, outputs, groups)
    return {
        f"{EXPERTS}_blocks": random.integers(0, 256, (*shape, 16), np.uint8),
        f"{EXPERTS}_scales": random.integers(*scales, shape, np.uint8),
    }


def fp8_tensors(name="a.weight", shape=(33, 47), dtype=np.float32):
    """Returns random numbers of eight bits, and their scales."""
    random = np.random.default_rng(0)
    due = [-(-n // size) for n, size in zip(shape, BLOCK, strict=True)]
    return {
        name: random.normal(0, 50, shape).astype(FP8),
        f"{name}_scale_inv": random.uniform(1e-3, 1e-2, due).astype(dtype),
    }


def test_four_bits_are_unpacked_as_transformers_does(tmp_path):
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    packed = mxfp4_tensors(scales=(0, 251))
    source = unpacked(write(tmp_path, packed), MXFP4, "x")
    assert source.names() == [EXPERTS]
    expected = mxfp4.convert_moe_packed_tensors(
        *map(torch.tensor, packed.values()), dtype=torch.float32
    ).numpy()
    assert source.shape(EXPERTS) == expected.shape == (3, 64, 6)
    np.testing.assert_array_equal(source.read(EXPERTS), expected)
    np.testing.assert_array_equal(source.read(EXPERTS, slice(1, 3)), expected[1:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bits_are_unpacked_as_transformers_does(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    packed = fp8_tensors(dtype=dtype) | {"norm.weight": np.ones(3, np.float32)}
    source = unpacked(write(tmp_path, packed), BLOCKWISE, "x")
    assert sorted(source.names()) == ["a.weight", "norm.weight"]
    weight, scales = (packed[n] for n in ("a.weight", "a.weight_scale_inv"))
    expected = finegrained._dequantize_fp8_weight(
        torch.tensor(weight.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.tensor(scales.astype(np.float32)),
        BLOCK,
        torch.float32,
    ).numpy()
    np.testing.assert_array_equal(source.read("a.weight"), expected, strict=True)
    for rows in (slice(0, 16), slice(15, 18), slice(30, 33), slice(5, 5)):
        np.testing.assert_array_equal(source.read("a.weight", rows), expected[rows])


def test_all_sixteen_numbers_are_those_of_the_standard(tmp_path):
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    scales = np.full((1, 1, 16), 127, np.uint8)
    packed = {"e_blocks": blocks, "e_scales": scales}
    got = unpacked(write(tmp_path, packed), MXFP4, "x").read("e")[0, :, 0]
    numbers = np.arange(16).astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
    lower, upper = np.meshgrid(numbers.astype(np.float32), numbers.astype(np.float32))
    expected = np.stack([lower.ravel(), upper.ravel()], axis=-1).ravel()
    np.testing.assert_array_equal(got.astype(np.float32), expected)


def edit(tensors, **changes):
    """Returns tensors with some replaced, or without those that are None."""
    ends = {
        n: next(e for e in changes if n.endswith(e))
        for n in tensors
        if any(n.endswith(e) for e in changes)
    }
    changed = {n: changes[ends[n]] if n in ends else v for n, v in tensors.items()}
    return {n: v for n, v in changed.items() if v is not None}


BYTES, FLOATS = np.zeros((3, 6, 2), np.uint8), np.zeros((3, 3), np.float32)


@pytest.mark.parametrize(
    ("tensors", "config", "named"),
    [
        (edit(mxfp4_tensors(), _scales=None), MXFP4, "gate_up_proj_blocks lacks"),
        (edit(mxfp4_tensors(), _blocks=None), MXFP4, "gate_up_proj_scales lacks"),
        (edit(mxfp4_tensors(), _scales=BYTES[:2]), MXFP4, "gate_up_proj_scales"),
        (edit(mxfp4_tensors(), _scales=np.float32(BYTES)), MXFP4, "proj_scales"),
        (edit(mxfp4_tensors(), _blocks=BYTES), MXFP4, "gate_up_proj_blocks"),
        (mxfp4_tensors() | {EXPERTS: FLOATS}, MXFP4, "once more"),
        (edit(fp8_tensors(), _scale_inv=None), BLOCKWISE, "a.weight lacks"),
        (edit(fp8_tensors(), weight=None), BLOCKWISE, "a.weight_scale_inv lacks"),
        (edit(fp8_tensors(), weight=np.zeros((33, 47), "f4")), BLOCKWISE, "a.weight"),
        (edit(fp8_tensors(), weight=np.zeros(33, FP8)), BLOCKWISE, "a.weight"),
        (edit(fp8_tensors(), _scale_inv=FLOATS[:2]), BLOCKWISE, "a.weight_scale_inv"),
        (edit(fp8_tensors(), _scale_inv=BYTES[0]), BLOCKWISE, "a.weight_scale_inv"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_file(
    tmp_path, tensors, config, named
):
    with pytest.raises(DataError, match=rf"{SINGLE}: .*{named}"):
        unpacked(write(tmp_path, tensors), config, "x")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        *(({"quant_method": m}, m) for m in ("gptq", "awq", "bitsandbytes")),
        ({}, "quant_method=None"),
        ("mxfp4", "quantization_config='mxfp4'"),
        ({**MXFP4, "bits": 3}, "quantization_config.bits=3"),
        ({**BLOCKWISE, "fmt": "e5m2"}, "fmt='e5m2'"),
        ({**BLOCKWISE, "activation_scheme": "static"}, "activation_scheme='static'"),
        ({**BLOCKWISE, "weight_block_size": [0, 128]}, "weight_block_size"),
        ({**BLOCKWISE, "weight_block_size": None}, "weight_block_size"),
    ],
)
def test_other_packings_are_refused_by_name(tmp_path, config, named):
    with pytest.raises(UserError, match=rf"config\.json: .*{named}"):
        unpacked(write(tmp_path, {}), config, "config.json")


def test_only_the_rows_that_are_read_are_unpacked(tmp_path):
    packed = mxfp4_tensors(experts=8, outputs=256, groups=8)
    source = unpacked(write(tmp_path, packed), MXFP4, "x")
    del packed
    source.read(EXPERTS, slice(0, 1))
    tracemalloc.start()
    try:
        size = source.read(EXPERTS, slice(3, 4)).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * size  # of 8 experts


def save_published(folder, model, config, tensors):
    """Writes a model of transformers whose tensors are packed, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(values))
    write(folder, tensors)
    vocab = {chr(ord("0") + i): i for i in range(SMALL["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))


SMALL = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "num_nextn_predict_layers": 1,
}
EXTRA = {  # layers past the last, as DeepSeek-V3 publishes them
    "model.layers.2.eh_proj.weight": (64, 128),
    "model.layers.2.shared_head.norm.weight": (64,),
    "model.layers.2.mlp.gate.weight": (4, 64),
}


def tensors_of(model, folder):
    model.save_pretrained(folder)
    found = Safetensors(folder)
    return {name: np.array(found.read(name)) for name in found.names()}


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A folder with experts in MXFP4, and the model that transformers makes of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt_oss")
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **SMALL, head_dim=16, num_local_experts=3, sliding_window=8
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    tensors, random = tensors_of(model, folder), np.random.default_rng(0)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = random.integers(0, 256, (*shape, 16), np.uint8)
        tensors[f"{name}_blocks"] = blocks
        tensors[f"{name}_scales"] = random.integers(120, 126, shape, np.uint8)
    save_published(folder, model, MXFP4, tensors)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    return folder, reference.eval(), set()


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    """A folder with kernels in FP8, and the model of what transformers unpacked."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    folder = tmp_path_factory.mktemp("deepseek")
    plain = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(**SMALL, **LATENT)
    model = transformers.AutoModelForCausalLM.from_config(config)
    whole, random = tensors_of(model, plain), np.random.default_rng(0)
    packed = dict(whole)
    others = ("embed_tokens.weight", "lm_head.weight", "gate.weight")
    for name, value in whole.items():
        if value.ndim != 2 or name.endswith(others):
            continue
        due = [-(-n // size) for n, size in zip(value.shape, BLOCK, strict=True)]
        scales = random.uniform(0.002, 0.01, due).astype(np.float32)
        wide = scales.repeat(BLOCK[0], 0).repeat(BLOCK[1], 1)
        small = (value / wide[: len(value), : value.shape[1]]).astype(FP8)
        packed |= {name: small, f"{name}_scale_inv": scales}
        whole[name] = finegrained._dequantize_fp8_weight(
            torch.tensor(small.view(np.uint8)).view(torch.float8_e4m3fn),
            torch.tensor(scales),
            BLOCK,
            torch.float32,
        ).numpy()
    packed |= {n: np.ones(shape, np.float32) for n, shape in EXTRA.items()}
    packed |= fp8_tensors("model.layers.2.mlp.up_proj.weight")
    save_published(folder, model, BLOCKWISE, packed)
    write(plain, whole)
    reference = transformers.AutoModelForCausalLM.from_pretrained(plain)
    return folder, reference.eval(), {*EXTRA, "model.layers.2.mlp.up_proj.weight"}


@pytest.fixture(params=["gpt_oss", "deepseek"])
def published(request):
    return request.getfixturevalue(request.param)


def test_logits_are_those_of_the_model_that_transformers_unpacks(published, tmp_path):
    import torch
    import transformers

    folder, model, _ = published
    lm = load(folder)
    tokens = np.random.default_rng(1).integers(3, SMALL["vocab_size"], 24)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)[None]).logits[0].numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(lm.logits(tokens.tolist()), expected, atol=1e-4, rtol=0)
    # An export is plain, and transformers reads it without unpacking anything.
    out = lm.save(tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ours, theirs = again.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_an_import_carries_its_proof_and_names_what_is_unused(
    published, tmp_path, capsys
):
    folder, _, unused = published
    assert main(["import", str(folder), f"--workdir={tmp_path / 'w'}"]) == DONE
    proof = json.loads((tmp_path / "w" / "parity.json").read_text())
    assert proof["ok"]
    assert proof["weights"]["max_abs_difference"] == 0
    assert set(proof["unused"]) == unused
    told = capsys.readouterr().out
    assert ("and 1 more: DeepSeek-V3 guesses" in told) == bool(unused)
    if proof["logits"] is None:
        assert "FP8" in proof["note"]


@pytest.mark.parametrize("count", [0, None])
def test_layers_past_the_last_that_no_config_tells_are_refused(
    deepseek, tmp_path, count
):
    for file in deepseek[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_nextn_predict_layers"] = count
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"also holds 4 tensors.*model\.layers\.2\."):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model", "scales", "value"),
    [
        ("gpt_oss", f"{EXPERTS}_scales", 255),
        ("deepseek", f"{KERNEL}_scale_inv", np.inf),
        ("deepseek", f"{KERNEL}_scale_inv", np.nan),
    ],
)
def test_a_scale_that_is_no_number_is_refused(request, tmp_path, model, scales, value):
    for file in request.getfixturevalue(model)[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = Safetensors(tmp_path)
    tensors = {name: np.array(found.read(name)) for name in found.names()}
    tensors[scales][-1, -1] = value
    write(tmp_path, tensors)
    with pytest.raises(DataError, match=r"gate_.*proj.* holds values that are not fin"):
        load(tmp_path)
