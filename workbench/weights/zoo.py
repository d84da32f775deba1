"""OpenAI's nine checkpoints: where they are, and how to know them.

Addresses and hashes: openai/CLIP @ d05afc4, clip/clip.py. The weights are MIT-licensed.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import Notice, UserError
from workbench.weights.download import DownloadError, digest_of, download

HOST = "https://openaipublic.azureedge.net/clip/models"
_OPENAIS_FOLDER = "~/.cache/clip"


@dataclass(frozen=True)
class Entry:
    """One checkpoint file."""

    file: str
    sha256: str

    @property
    def url(self) -> str:
        """Where it is fetched from; `CLIP_WORKBENCH_ZOO_URL` names a mirror in place of OpenAI's host."""
        return f"{os.environ.get('CLIP_WORKBENCH_ZOO_URL', HOST)}/{self.sha256}/{self.file}"


ZOO = {
    "RN50": Entry("RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    "RN101": Entry("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    "RN50x4": Entry("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    "RN50x16": Entry("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    "RN50x64": Entry("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    "ViT-B/32": Entry("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": Entry("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": Entry("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": Entry("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
}


def find(name: str, download_root: str | Path | None = None) -> Path:
    """Return the path of a checkpoint, fetching it when it is not there.

    A file of another hash is fetched again, with a warning, as OpenAI's own package does.

    Args:
        name: a key of `ZOO`.
        download_root: folder to keep it in; None takes `CLIP_WORKBENCH_CACHE`, else `~/.cache/clip`, which
            OpenAI's own package uses. What is there already is used in place, whatever the folder.

    Raises:
        UserError: the right file is not there and cannot be fetched.
    """
    entry = ZOO[name]
    folder = Path(download_root or os.environ.get("CLIP_WORKBENCH_CACHE") or _OPENAIS_FOLDER).expanduser()
    path = folder / entry.file
    state = f"The weights of {name} are not on this machine and"
    if path.is_file():
        found = sha256(path)
        if found == entry.sha256:
            return path
        wrong = f"{path} is not OpenAI's {entry.file} (its sha256 is {found})"
        warnings.warn(Notice(f"{wrong}: fetching it again."), stacklevel=2)
        state = f"{wrong} and the right one"
    elif (openais := _openais(entry)) is not None:
        return openais
    try:
        download(entry.url, path, entry.sha256)
    except DownloadError as error:
        raise UserError(
            f"{state} could not be fetched ({error}). Get {entry.file} from {entry.url} (sha256 {entry.sha256}) "
            f"and put it at {path}; or, in a run, start without: --model.init_args.weights null."
        ) from error
    return path


def sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    return digest_of(path).hexdigest()


def _openais(entry: Entry) -> Path | None:
    """Return the file of OpenAI's own package, if it is there, readable and right."""
    try:
        path = Path(_OPENAIS_FOLDER).expanduser() / entry.file
        return path if sha256(path) == entry.sha256 else None
    except (OSError, RuntimeError):  # not there, not readable; RuntimeError: there is no home
        return None
