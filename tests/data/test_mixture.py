"""The spec grammar, and what it refuses."""

import subprocess
import sys

import pytest

from a2d_ray.data.sources.mixture import SourceSpec, check_spec, local_path, parse_spec


def test_the_public_mixture_is_read():
    spec = (
        "allenai/tulu-3-sft-mixture+HuggingFaceTB/smoltalk[name:all,train:5_000,test:1_000]"
        "+OpenCoder-LLM/opc-sft-stage1[lang:Python]+ultrachat_200k[weight:0.3,train_split:train_sft]"
    )
    assert parse_spec(spec) == (
        SourceSpec(name="allenai/tulu-3-sft-mixture"),
        SourceSpec(name="HuggingFaceTB/smoltalk", config="all", train=5000, test=1000),
        SourceSpec(name="OpenCoder-LLM/opc-sft-stage1", lang="python"),
        SourceSpec(name="ultrachat_200k", weight=0.3, train_split="train_sft"),
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "a[trian:5]",
            r"data.spec=a\[trian:5\] .*'trian': did you mean 'train'\? allowed: train, test",
        ),
        ("a[train:many]", "train:many: it must be a whole number"),
        ("a[train:5__0]", "must be a whole number"),
        ("a[weight:0]", r"must be in \(0, 100\]"),
        ("a[weight:nan]", r"must be in \(0, 100\]"),
        ("a[train]", "'train', which is not key:value"),
        ("a[]", "which is not key:value"),
        ("a[train:1,train:2]", "gives 'train' twice"),
        ("a[train:5", "cannot be read"),
        ("a++b", "an empty part"),
        ("", "an empty part"),
        ("a+a", "lists 'a' twice"),
    ],
)
def test_a_typo_names_part_key_and_what_is_allowed(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(spec)


def test_a_plus_inside_an_existing_path_is_part_of_it(tmp_path, monkeypatch):
    (tmp_path / "c++").mkdir()
    monkeypatch.chdir(tmp_path)
    specs = parse_spec("c+++c++[train:5,name:x]+embedded/sums")
    assert [spec.name for spec in specs] == ["c++", "c++", "embedded/sums"]


def test_brackets_inside_an_existing_path_are_part_of_it(tmp_path):
    root = tmp_path / "a+b[c]" / "x[train:1]"
    root.mkdir(parents=True)
    (root / "own.jsonl").touch()
    (spec, other) = parse_spec(f"{root}/own.jsonl[test:4]+embedded/sums[train:5]")
    assert (spec.name, spec.test, spec.train) == (f"{root}/own.jsonl", 4, None)
    assert (other.name, other.train) == ("embedded/sums", 5)


def test_a_mirror_stands_in_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org" / "set").mkdir(parents=True)
    monkeypatch.setenv("A2D_DATASETS_DIR", str(tmp_path))
    assert local_path("org/set") == (tmp_path / "org" / "set").resolve()
    assert check_spec("org/set[train:1]") == parse_spec("org/set[train:1]")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded/sort", "did you mean 'embedded/sorting'"),
        ("{root}/rowz.jsonl", "does not exist: did you mean '.*rows.jsonl'"),
        ("org/set", "HF_HUB_OFFLINE"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_opened(tmp_path, spec, message):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(ValueError, match=message):
        check_spec(spec.format(root=tmp_path))


def test_checking_loads_neither_ray_nor_torch():
    code = (
        "import sys; from a2d_ray.data.sources.mixture import check_spec;"
        "check_spec('embedded/sums');"
        "assert not {'ray', 'torch', 'pyarrow', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
