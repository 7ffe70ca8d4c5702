"""What an experiment is told, checked before anything is computed."""

from __future__ import annotations

import difflib
import inspect
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Named settings that come with the package.
CONFIGS = ("smoke", "hour", "original")
ROWS = ("bulk", "single_cell", "transfer")
GUIDANCE = ("unguided", "guided")
#: A `guidance_scale` that validation cells choose.
TUNED = "tuned"
SIMULATED = "simulated"


@dataclass
class SimulatedData:
    """Size of simulated data, where a file is ``"simulated"``.

    Parameters
    ----------
    n_obs, n_bulk
        Cells and bulk samples.
    n_vars, n_labels
        Transcripts and labels.
    shared_vars
        Share of the transcripts that bulk has, and likewise single cells: ARCHS4's two files have different ones.

    Examples
    --------
    >>> from isd.experiment import Data, SimulatedData
    >>> Data(simulated=SimulatedData(n_obs=500, n_vars=300, n_labels=4)).simulated.n_bulk
    1000
    """

    n_obs: int = 3000
    n_bulk: int = 1000
    n_vars: int = 2000
    n_labels: int = 12
    shared_vars: float = 0.9


@dataclass
class Data:
    """Bulk samples and single cells.

    Parameters
    ----------
    bulk, single_cell
        Path of an h5ad file of raw counts, or ``"simulated"``. Paths are relative to the config's folder.
    labels_key
        Column of ``obs`` with the labels.
    layer
        Layer of raw counts; ``None`` takes ``"counts"`` if there, else ``X``.
    gene_key
        Column of ``var`` with the gene of each transcript, for a decoder that knows genes; ``None`` for none.
    test_size, validation_size
        Shares of the cells that are held out, by :func:`isd.pp.split`, where a file has no ``obs["isd_split"]``.
    simulated
        Size of simulated data.

    Examples
    --------
    >>> from isd.experiment import Data
    >>> Data(bulk="bulk.h5ad", single_cell="cells.h5ad", labels_key="cell_type").test_size
    0.3
    """

    bulk: str = SIMULATED
    single_cell: str = SIMULATED
    labels_key: str = "leiden"
    layer: str | None = None
    gene_key: str | None = None
    test_size: float = 0.3
    validation_size: float = 0.1
    simulated: SimulatedData = field(default_factory=SimulatedData)


@dataclass
class Arm:
    """One way of making cells, which is trained for each row of the grid.

    Parameters
    ----------
    preset
        ``"default"``, or ``"published"`` for the starting project's networks.
    vae, diffusion
        Arguments of :class:`isd.model.VAE` and :class:`isd.model.LatentDiffusion`.
    vae_train, diffusion_train, classifier_train
        Arguments of their ``train``, and of that of the classifier.
    transfer
        Arguments of :meth:`isd.model.VAE.from_pretrained`, where the preset is the default. Labels are not matched by name unless
        ``match_labels: true`` says that clusters of bulk and of cells were found together.
    unguided, guided
        Arguments of :func:`isd.tl.generate`. With ``guidance_scale: tuned`` in ``guided``, :func:`isd.tl.tune_guidance` chooses the
        scale on the validation cells of each row; so it does where no scale is given and no classifier guides.
    classifier
        Whether a classifier guides. ``None``: with the published preset.
    same_minutes_as
        Another arm, whose minutes in training the same row this arm is given: 45% to its VAE, 45% to the diffusion model, 10%
        to the classifier. ``None`` goes by steps.

    Examples
    --------
    >>> from isd.experiment import Arm
    >>> Arm(preset="published").with_classifier, Arm(guided={"guidance_scale": 1.5}).with_classifier
    (True, False)
    >>> Arm().tuned, Arm(guided={"guidance_scale": 1.5}).tuned
    (True, False)
    """

    preset: Literal["default", "published"] = "default"
    vae: dict[str, Any] = field(default_factory=dict)
    vae_train: dict[str, Any] = field(default_factory=dict)
    diffusion: dict[str, Any] = field(default_factory=dict)
    diffusion_train: dict[str, Any] = field(default_factory=dict)
    classifier_train: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    unguided: dict[str, Any] = field(default_factory=dict)
    guided: dict[str, Any] = field(default_factory=dict)
    classifier: bool | None = None
    same_minutes_as: str | None = None

    @property
    def with_classifier(self) -> bool:
        """Whether a classifier guides."""
        return self.preset == "published" if self.classifier is None else self.classifier

    @property
    def tuned(self) -> bool:
        """Whether validation cells choose how strongly it is guided."""
        scale = self.guided.get("guidance_scale", TUNED if self._tunable else None)
        return isinstance(scale, str) and scale == TUNED

    @property
    def _tunable(self) -> bool:
        """Whether guidance is that of the denoiser alone."""
        latents = self.guided.get("latents", "diffusion")
        return self.preset != "published" and not self.with_classifier and latents == "diffusion"


@dataclass
class Evaluation:
    """How cells are judged.

    Parameters
    ----------
    metrics
        Metrics of :func:`isd.metrics.evaluate`; ``None`` for all quick ones.
    seed_metrics
        Whether to compute the starting project's own definitions too.
    per_label
        Whether each label is judged by itself too, where cells have labels.
    pictures
        Whether to draw UMAP and ROC curves of each cell of the grid.
    max_cells, n_boot, n_jobs
        As in :func:`isd.metrics.evaluate`.

    Examples
    --------
    >>> from isd.experiment import Evaluation
    >>> Evaluation(metrics=["random_forest_auc"], per_label=False).seed_metrics
    True
    """

    metrics: list[str] | None = field(
        default_factory=lambda: ["random_forest_auc", "mmd", "coverage", "label_agreement", "nearest_distance_ratio"]
    )
    seed_metrics: bool = True
    per_label: bool = True
    pictures: bool = True
    max_cells: int = 5000
    n_boot: int = 100
    n_jobs: int = 1


@dataclass
class Config:
    """An experiment: data, grid, arms and evaluation.

    Parameters
    ----------
    out
        Folder for everything that is made.
    seeds
        Seeds; each is a split, a training and a generation of its own (and a world, where data are simulated).
    data
        :class:`Data`.
    rows
        Rows of the grid: ``"bulk"``, ``"single_cell"``, ``"transfer"`` (single cells, started from bulk).
    guidance
        Columns: ``"unguided"``, ``"guided"``.
    one_class
        Label of single cells that a model of its own is trained on, and that the guided single-cell model is judged on besides; ``None``
        for none.
    arms
        :class:`Arm` by name.
    evaluation
        :class:`Evaluation`.
    n_obs
        Cells to generate for each cell of the grid; ``None``: as many as were held out.
    keep_generated
        Whether to keep the generated cells, as h5ad.

    Examples
    --------
    >>> import isd
    >>> config = isd.experiment.read_config("smoke")
    >>> config.rows
    ['bulk', 'single_cell', 'transfer']
    """

    out: str = "isodiff_experiment"
    seeds: list[int] = field(default_factory=lambda: [0])
    data: Data = field(default_factory=Data)
    rows: list[str] = field(default_factory=lambda: list(ROWS))
    guidance: list[str] = field(default_factory=lambda: list(GUIDANCE))
    one_class: str | None = "0"
    arms: dict[str, Arm] = field(default_factory=lambda: {"default": Arm(), "published": Arm(preset="published")})
    evaluation: Evaluation = field(default_factory=Evaluation)
    n_obs: int | None = None
    keep_generated: bool = True

    def __post_init__(self) -> None:
        for name, values, known in (("rows", self.rows, ROWS), ("guidance", self.guidance, GUIDANCE)):
            for value in values:
                if value not in known:
                    raise ValueError(
                        f"{name}: {value!r} is not one of {', '.join(known)}.{_nearest(str(value), known)}"
                    )
        from isd.metrics import METRICS

        for value in self.evaluation.metrics or ():
            if value not in METRICS:
                raise ValueError(f"evaluation.metrics: {value!r} is not known.{_nearest(value, METRICS)}")
        if not self.seeds or not self.arms or not (self.rows or self.one_class):
            raise ValueError("seeds, arms, and rows (or one_class) must name at least one each.")
        if self.n_obs is not None and self.n_obs < 1:
            raise ValueError(
                f"n_obs is {self.n_obs}; expected a number of cells, or null for as many as were held out."
            )
        for name, arm in self.arms.items():
            _check_arguments(name, arm)
            if arm.same_minutes_as is not None:
                names = list(self.arms)
                if arm.same_minutes_as not in names[: names.index(name)]:
                    raise ValueError(
                        f"arms.{name}.same_minutes_as is {arm.same_minutes_as!r}; expected an arm before it "
                        f"({', '.join(names[: names.index(name)]) or 'there is none'})."
                    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file.

        Examples
        --------
        >>> from isd.experiment import read_config
        >>> read_config("smoke").to_dict()["data"]["bulk"]
        'simulated'
        """
        return asdict(self)


def read_config(source: str | Path | dict[str, Any] | Config) -> Config:
    """Read an experiment's settings and check them.

    Parameters
    ----------
    source
        Path of a YAML file; the name of a shipped one (``"smoke"``, ``"hour"``, ``"original"``); a dict of the same shape; or a
        :class:`Config`.

    Returns
    -------
    :class:`Config`. Paths of data in a file are made relative to the file's folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no YAML, a key is unknown (the nearest known one is named) or a value is of another type than expected.

    Examples
    --------
    >>> import isd
    >>> isd.experiment.read_config({"seeds": [0, 1], "data": {"simulated": {"n_obs": 300}}}).data.simulated.n_obs
    300
    >>> isd.experiment.read_config({"sedes": [0]})
    Traceback (most recent call last):
    ...
    ValueError: config: 'sedes' is not known. Did you mean 'seeds'?
    """
    if isinstance(source, Config):
        return source
    base: Path | None = None
    if not isinstance(source, dict):
        import yaml

        path = Path(source)
        if str(source) in CONFIGS and not path.exists():
            text = resources.files("isd.experiment").joinpath(f"configs/{source}.yaml").read_text(encoding="utf-8")
        elif path.is_file():
            text, base = path.read_text(encoding="utf-8"), path.resolve().parent
        else:
            raise FileNotFoundError(
                f"{source} is neither a file nor one of the configs that come with isodiff ({', '.join(CONFIGS)})."
            )
        try:
            source = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(e).split())}") from e
    config = _make(Config, source, "config")
    if base is not None:
        for name in ("bulk", "single_cell"):
            value = getattr(config.data, name)
            if value != SIMULATED:
                setattr(config.data, name, str(base / Path(value).expanduser()))
    return config


def _make(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a mapping, all keys and types checked."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}; expected keys and values.")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for key in values:
        if key not in names:
            raise ValueError(f"{where}: {key!r} is not known.{_nearest(str(key), names)}")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _make(hint, value, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} is {value!r}; expected one of {', '.join(map(repr, args))}.")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; expected a list.")
        return [_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; expected keys and values.")
        return {str(k): v if args[1] is Any else _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is str and isinstance(value, int | str) and not isinstance(value, bool):
        return str(value)  # a label "0" need not be quoted
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}; expected {hint.__name__}.")
    return value


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else f" Known are: {', '.join(known)}."


#: Arguments that the experiment gives itself.
_OURS = {
    "self",
    "adata",
    "vae",
    "registry",
    "preset",
    "seed",
    "model",
    "n_obs",
    "labels",
    "classifier",
    "progress",
    "backed",
}


def _check_arguments(name: str, arm: Arm) -> None:
    """Arguments that models, trainings and generation do not know are errors now, not after hours."""
    from isd import model, tl

    for part, call, open_ended in (
        ("vae", model.VAE.__init__, True),
        ("diffusion", model.LatentDiffusion.__init__, True),
        ("vae_train", model.VAE.train, False),
        ("diffusion_train", model.LatentDiffusion.train, False),
        ("classifier_train", model.Classifier.train, False),
        ("transfer", model.VAE.from_pretrained, False),
        ("unguided", tl.generate, False),
        ("guided", tl.generate, False),
    ):
        known = set(inspect.signature(call).parameters) - _OURS - {"trainer_kwargs", "module_kwargs", "vae_kwargs"}
        if open_ended:
            known |= set(_module_arguments(part))
        for key in getattr(arm, part):
            if key not in known:
                raise ValueError(f"arms.{name}.{part}: {key!r} is not known.{_nearest(str(key), sorted(known))}")
    for part in ("unguided", "guided"):
        scale = getattr(arm, part).get("guidance_scale")
        if isinstance(scale, str) and (part == "unguided" or scale != TUNED or not arm._tunable):
            raise ValueError(
                f"arms.{name}.{part}.guidance_scale is {scale!r}; expected a number (1 for none), or {TUNED!r} for the guided "
                "cells of an arm whose denoiser knows labels, with no classifier and the diffusion's latents."
            )


def _module_arguments(part: str) -> list[str]:
    from isd import module

    kinds = (module.VAEModule, module.GeneVAEModule) if part == "vae" else (module.LatentDiffusionModule,)
    return [name for kind in kinds for name in inspect.signature(kind).parameters]
