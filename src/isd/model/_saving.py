"""How models are saved and loaded: the part of every model that has to do with its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from isd._processes import process_rank
from isd.model._bounds import DTYPES, check_numbers, described_by
from isd.model._fields import GENES_KEY, GenesField
from isd.model._files import ADATA_FILE, MODEL_FILE, check_adata_file, read_model, write_folder, write_model
from isd.model._hub import Sharing
from isd.model._pickled import read_pickled
from isd.model._state import TRAINING_FILE
from isd.model._validation import check_features

_ARRAY_PREFIX = "array."
_WEIGHT_PREFIX = "module."
_FIELDS, _STATE = "field_registries", "state_registry"


class Saving(Sharing, BaseModelClass):
    """What all models do with files."""

    _colors: list[str] | None
    _adata: AnnData | None
    _var: pd.DataFrame | None
    #: file that the next save takes into its folder: the state of a training that is not finished
    _state_to_save: Path | None = None
    #: model whose folder holds this one's, while a training saves both
    _saved_within: Any = None

    def _attributes(self) -> dict[str, Any]:
        """Public attributes that end in ``_``, as scvi saves them; arrays and the registry go elsewhere."""
        skip = {"registry_"}
        return {
            k: v
            for k, v in self.__dict__.items()
            if k.endswith("_") and not k.startswith("_") and k not in skip and not isinstance(v, np.ndarray)
        }

    def _extra_meta(self) -> dict[str, Any]:
        return {}

    def _extra_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that are saved besides those of the module."""
        return {}

    def _restore_extra(self, meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`_extra_meta` and :meth:`_extra_tensors` saved."""

    def _check_consistent(self) -> None:
        """Raise when parts of the model no longer belong together."""

    @property
    def training_finished(self) -> bool:
        """Whether the last training ran to its end; ``False`` where it was stopped and can go on, or none was begun."""
        return bool(getattr(self, "training_finished_", self.is_trained_))

    def _checkpoint_call(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        return {}

    def _checkpoint_notes(self) -> dict[str, Any]:
        """Plain data that a checkpoint of a training keeps besides."""
        return {}

    def _save_beside(self, folder: Path) -> None:
        """Write what is saved beside the model (its VAE)."""

    def save(  # type: ignore[override]
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model to a folder of safetensors and JSON files.

        Parameters
        ----------
        dir_path
            Folder to write. It appears when it is whole; an interrupted save leaves the older one.
        overwrite
            Whether a model that is there may be replaced.
        save_anndata
            Whether to write the AnnData beside (``adata.h5ad``), so that :meth:`load` needs no other data.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is off, or is no model; if there is no AnnData to save.

        Notes
        -----
        Of several processes that trained together (``strategy="ddp"``), the first writes and the others do nothing.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=2, progress=False)
        >>> import tempfile
        >>> folder = f"{tempfile.mkdtemp()}/vae"
        >>> vae.save(folder, save_anndata=True)
        >>> isd.model.VAE.load(folder).fingerprint == vae.fingerprint
        True
        """
        if process_rank():
            return
        self._check_consistent()
        if save_anndata and self._adata is None:
            raise ValueError("save_anndata=True, but the model was loaded without data.")
        table = self.feature_table
        features = {
            "var_names": list(map(str, self.feature_names)),
            "columns": {c: [None if pd.isna(v) else str(v) for v in table[c]] for c in table.columns},
        }
        registry = {**self.registry_, _FIELDS: dict(self.registry_[_FIELDS])}
        x_field = dict(registry[_FIELDS][REGISTRY_KEYS.X_KEY])
        # names of features stand once, in features.json
        x_field[_STATE] = {k: v for k, v in x_field[_STATE].items() if k != "column_names"}
        registry[_FIELDS][REGISTRY_KEYS.X_KEY] = x_field
        if self.gene_key is not None:
            # so do genes
            state = self._state(GENES_KEY)
            features["genes"] = {k: np.asarray(v).tolist() for k, v in state.items()}
            registry[_FIELDS][GENES_KEY] = {**registry[_FIELDS][GENES_KEY], _STATE: {}}
        tensors = {_WEIGHT_PREFIX + k: v for k, v in self.module.state_dict().items()} | self._extra_tensors()
        for name, value in self.__dict__.items():
            if name.endswith("_") and isinstance(value, np.ndarray):
                # torch's uint64 has few friends: such arrays travel as int64 of the same bits
                plain = value.view(np.int64) if value.dtype == np.uint64 else value
                tensors[_ARRAY_PREFIX + f"{value.dtype}." + name] = torch.from_numpy(np.ascontiguousarray(plain).copy())
        meta = {
            "class": type(self).__name__,
            "fingerprint": self.fingerprint,
            "colors": self.label_colors,
            "attributes": self._attributes(),
            "registry": registry,
            **self._extra_meta(),
        }

        def fill(folder: Path) -> None:
            if save_anndata and self.adata.isbacked:
                # writing would move the caller's AnnData over to the new file
                self.adata.copy(filename=folder / ADATA_FILE).file.close()
            elif save_anndata:
                self.adata.write_h5ad(folder / ADATA_FILE, **anndata_write_kwargs)
            self._save_beside(folder)
            if self._state_to_save is not None:
                os.replace(self._state_to_save, folder / TRAINING_FILE)
            write_model(folder, meta, tensors, features)

        write_folder(dir_path, fill, overwrite=overwrite)

    @classmethod
    def _build(cls, adata: AnnData | None, registry: dict[str, Any], init_params: dict[str, Any], **extra: Any) -> Self:
        return cls(adata, registry=None if adata is not None else registry, **init_params, **extra)

    @classmethod
    def _load(
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None,
        accelerator: str,
        device: int | str,
        allow_pickle: bool = False,
        **extra: Any,
    ) -> Self:
        if not (adata is None or adata is False or isinstance(adata, AnnData)):
            raise TypeError(f"adata must be an AnnData, None or False, got {adata!r}.")
        path = Path(dir_path)
        meta, tensors, features = (read_pickled if allow_pickle else read_model)(path, cls.__name__)
        if adata is None and (path / ADATA_FILE).exists():
            import anndata

            check_adata_file(path)
            adata = anndata.read_h5ad(path / ADATA_FILE)
        data = adata if isinstance(adata, AnnData) else None
        if data is not None:
            check_features(pd.Index(features["var_names"]), data.var_names)
        # first without data: what does not fit together is then a fault of the files
        with described_by(path, tensors):
            model = cls._assemble(None, meta, tensors, features, extra)
        if data is not None:
            cls.setup_anndata(data, source_registry=model.registry_, **model.registry_["setup_args"])
            model = cls._assemble(data, meta, tensors, features, extra)
        model._colors = meta["colors"]
        if features["columns"]:
            model._var = pd.DataFrame(features["columns"], index=pd.Index(features["var_names"]))
        _, _, torch_device = parse_device_args(
            accelerator=accelerator, devices=device, return_device="torch", validate_single_device=True
        )
        model.to_device(torch_device)
        model.module.eval()
        if meta["fingerprint"] is not None and model.fingerprint != meta["fingerprint"]:
            raise ValueError(f"{path}: the weights do not have the fingerprint that {MODEL_FILE} gives them.")
        return model

    @classmethod
    def _assemble(
        cls,
        data: AnnData | None,
        meta: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        features: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> Self:
        """Make the model that the parts of a folder describe."""
        registry = dict(meta["registry"])
        registry[_FIELDS] = {name: dict(field) for name, field in registry[_FIELDS].items()}
        x_field = registry[_FIELDS][REGISTRY_KEYS.X_KEY]
        x_field[_STATE] = {**x_field[_STATE], "column_names": np.array(features["var_names"], dtype=object)}
        if "genes" in features:
            registry[_FIELDS][GENES_KEY][_STATE] = GenesField.state(**features["genes"])
        attributes = dict(meta["attributes"])
        init_params = attributes.pop("init_params_")["non_kwargs"]
        check_numbers(init_params, tensors)
        model = cls._build(data, registry, {k: v for k, v in init_params.items() if k not in extra}, **extra)
        state = {k[len(_WEIGHT_PREFIX) :]: v for k, v in tensors.items() if k.startswith(_WEIGHT_PREFIX)}
        expected = {k: tuple(v.shape) for k, v in model.module.state_dict().items()}
        found = {k: tuple(v.shape) for k, v in state.items()}
        if expected != found:
            odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            raise ValueError(f"{len(odd)} tensors differ from their description ({', '.join(odd[:3])})")
        model.module.load_state_dict(state)
        for name, value in attributes.items():
            setattr(model, cls._attribute_name(name), value)
        for name, value in tensors.items():
            if name.startswith(_ARRAY_PREFIX):
                dtype, key = name[len(_ARRAY_PREFIX) :].split(".", 1)
                if dtype not in DTYPES - {"object"}:
                    raise ValueError(f"an array of type {dtype[:40]!r}, which isd never writes")
                setattr(model, cls._attribute_name(key), value.numpy().view(np.dtype(dtype)).copy())
        model._restore_extra(meta, tensors)
        return model

    @classmethod
    def _attribute_name(cls, name: str) -> str:
        """A name that a file may set: what ``save`` keeps, and no method or property."""
        kind = getattr(cls, name, None)
        if name.endswith("_") and not name.startswith("_") and not callable(kind) and not isinstance(kind, property):
            return name
        raise ValueError(f"{name[:40]!r} is not the name of anything that a model keeps")

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        *,
        allow_pickle: bool = False,
    ) -> Self:
        """Load a model that :meth:`save` wrote; nothing in the folder is executed.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data to attach, with the model's features in the model's order. ``None`` takes the AnnData in the folder if
            there is one, else none; ``False`` takes none. Generating needs none.
        accelerator, device
            Where to put the model.
        allow_pickle
            Read scvi-tools' own format (``model.pt``) instead, which can run any code that its author put there; with a
            warning. For folders of people whom you trust as you trust their programs.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        ValueError
            If files are damaged, were changed, or ask for more than they hold; if they are of a newer format; if the
            features of ``adata`` are others or in another order.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=2, progress=False)
        >>> import tempfile
        >>> folder = f"{tempfile.mkdtemp()}/vae"
        >>> vae.save(folder)
        >>> again = isd.model.VAE.load(folder)  # without data: generating and decoding need none
        >>> again = isd.model.VAE.load(folder, adata)
        >>> again.get_latent_representation().shape
        (60, 4)
        """
        return cls._load(dir_path, adata, accelerator, device, allow_pickle)
