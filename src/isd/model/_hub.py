"""Models on the Hugging Face Hub, or on a server of one's own that speaks its language."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from isd.model._card import model_card
from isd.model._files import ADATA_FILE, FEATURES_FILE, MODEL_FILE, WEIGHTS_FILE, isd_version

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_FILES = (MODEL_FILE, WEIGHTS_FILE, FEATURES_FILE)
_CARD = "README.md"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError('sharing models needs the package huggingface_hub: pip install "isodiff[hub]".') from None
    return huggingface_hub


def _endpoint() -> str | None:
    """The server: that of ``HF_ENDPOINT``, else huggingface.co."""
    return os.environ.get("HF_ENDPOINT") or None


class Sharing:
    """What all models do with the Hub."""

    def push_to_hub(
        self: Any,
        repo_id: str,
        *,
        metrics: pd.DataFrame | AnnData | None = None,
        card: str | None = None,
        description: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        save_anndata: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Share the model on the Hugging Face Hub, with a card that says what it is and how well it does.

        One commit has all files: whoever loads the model gets the older one or the new one. Needs ``isodiff[hub]``.

        Parameters
        ----------
        repo_id
            Repository, ``"user/name"``; made if it is not there.
        metrics
            For the card: what :func:`isd.metrics.evaluate` returned, or the generated cells after that call.
        card
            A card of one's own in place of :func:`isd.model.model_card`.
        description, license
            For the card: where the cells are from; the identifier of a licence.
        private
            Whether a repository that is made here is private; ``None``: as the account has it.
        save_anndata
            Whether to share the cells too. Ask yourself whether you may.
        revision
            Branch to write to; ``None``: the main one.
        commit_message
            By default says the class of the model and the version of isodiff.
        token
            Access token; ``None`` takes the one that ``hf auth login`` keeps.

        Returns
        -------
        Address of the commit. Its hash is the ``revision`` by which others can load exactly this model.

        Raises
        ------
        ImportError
            If huggingface_hub is not installed.
        ValueError
            If the model is not trained, or there is no AnnData to share.

        Examples
        --------
        >>> model.push_to_hub("me/my-cells", metrics=table, license="cc-by-4.0")  # doctest: +SKIP
        """
        hub = _hub()
        text = (
            card
            if card is not None
            else model_card(self, metrics=metrics, repo_id=repo_id, description=description, license=license)
        )
        api = hub.HfApi(endpoint=_endpoint(), token=token, library_name="isodiff", library_version=isd_version())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            self.save(path, save_anndata=save_anndata)
            (path / _CARD).write_text(text, encoding="utf-8")
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=path,
                revision=revision,
                commit_message=commit_message or f"{type(self).__name__}, isodiff {isd_version()}",
                # what an older model had and this one has not
                delete_patterns=["*.json", "*.safetensors", ADATA_FILE],
            )
        return str(commit.commit_url)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model from the Hugging Face Hub; nothing that is downloaded is executed.

        Only the files of a model are fetched, once, and then as :meth:`load` does: checked, bounded by their size. A pickle
        among them is not read. Needs ``isodiff[hub]``.

        Parameters
        ----------
        repo_id
            Repository, ``"user/name"``.
        revision
            Branch, tag or hash of a commit. A hash gives the same model for ever: name it in what you publish.
        adata
            As in :meth:`load`; ``False`` leaves shared cells where they are.
        accelerator, device
            As in :meth:`load`.
        token
            Access token, for what is private.
        cache_dir
            Folder of downloads; by default that of the Hub.
        local_files_only
            Take what was downloaded before, and ask no server.
        **kwargs
            Further arguments of :meth:`load` (``diffusion=`` for a classifier).

        Raises
        ------
        ImportError
            If huggingface_hub is not installed.
        OSError
            If the repository or revision is not there or cannot be reached.
        FileNotFoundError, ValueError
            As :meth:`load`.

        Examples
        --------
        >>> model = isd.model.LatentDiffusion.from_hub("me/my-cells", revision="3f2a9c1")  # doctest: +SKIP
        """
        if kwargs.pop("allow_pickle", False):
            raise ValueError(
                "from_hub reads no pickles; download the folder, look at it, and use load(allow_pickle=True)."
            )
        wanted = [f"{folder}{name}" for folder in ("", "vae/") for name in _FILES]
        path = _hub().snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=[*wanted, *([ADATA_FILE] if adata is None else [])],
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            endpoint=_endpoint(),
            library_name="isodiff",
            library_version=isd_version(),
        )
        return cls.load(path, adata, accelerator, device, **kwargs)  # type: ignore[attr-defined]
