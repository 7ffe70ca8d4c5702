"""Folders of weights in the layout that SCimilarity publishes, read without executing anything in them."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENCODER_FILE, DECODER_FILE, GENES_FILE = "encoder.ckpt", "decoder.ckpt", "gene_order.tsv"
_NORM = ("weight", "bias", "running_mean", "running_var")
_WEIGHT = re.compile(r"network\.(\d+)\.weight")


@dataclass
class Block:
    """A linear layer, batch normalisation and PReLU."""

    linear: dict[str, Tensor]
    norm: dict[str, Tensor]
    activation: dict[str, Tensor]


@dataclass
class Network:
    """Blocks, and the linear layer at the end."""

    blocks: list[Block]
    last: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Widths from input to output."""
        return (
            *(b.linear["weight"].shape[1] for b in self.blocks),
            self.last["weight"].shape[1],
            self.last["weight"].shape[0],
        )


@dataclass
class Published:
    """What a folder holds: two networks, and the gene symbol of each of the encoder's inputs."""

    encoder: Network
    decoder: Network
    genes: list[str]


def read_scimilarity(path: str | Path) -> Published:
    """Read encoder, decoder and gene order of a folder in the layout of SCimilarity's ``annotation_model_v1``.

    Parameters
    ----------
    path
        Folder with ``encoder.ckpt``, ``decoder.ckpt`` and ``gene_order.tsv``.

    Raises
    ------
    FileNotFoundError
        If one of them is missing.
    ValueError
        If a checkpoint holds anything but plain tensors, lacks a tensor, or has shapes that do not fit each other.
    """
    path = Path(path)
    missing = [name for name in (ENCODER_FILE, DECODER_FILE, GENES_FILE) if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(missing)}; expected the folder annotation_model_v1 of SCimilarity, unpacked "
            "(isd.datasets.fetch_scimilarity downloads it)."
        )
    genes = [line.strip() for line in (path / GENES_FILE).read_text(encoding="utf-8").splitlines()]
    genes = [gene for gene in genes if gene]
    encoder = _network(_state(path / ENCODER_FILE), path / ENCODER_FILE, first=1)
    decoder = _network(_state(path / DECODER_FILE), path / DECODER_FILE, first=0)
    for name, network, width in ((ENCODER_FILE, encoder, encoder.shape[0]), (DECODER_FILE, decoder, decoder.shape[-1])):
        if width != len(genes):
            raise ValueError(f"{path / name} has {width} genes, but {GENES_FILE} names {len(genes)}.")
        if len(set(network.shape[1:-1])) != 1:
            raise ValueError(f"{path / name} has hidden layers of widths {network.shape[1:-1]}; expected equal ones.")
    if encoder.shape[::-1] != decoder.shape:
        raise ValueError(f"{path}: the decoder's widths {decoder.shape} do not mirror the encoder's {encoder.shape}.")
    return Published(encoder, decoder, genes)


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; anything else in it is refused, before it could run."""
    try:
        document: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(
            f"{file} holds more than tensors, which could run code when it is read: it was not read. "
            f"Download the folder anew from its publisher. ({str(e).splitlines()[0]})"
        ) from e
    except (RuntimeError, EOFError, OSError) as e:
        raise ValueError(f"{file} cannot be read as a checkpoint of torch; the file is damaged. ({e})") from e
    state = document.get("state_dict", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f'{file} has no "state_dict" of tensors.')
    return state


def _network(state: dict[str, Tensor], file: Path, *, first: int) -> Network:
    """Sort the tensors of a checkpoint by layer; ``first`` is the place of the linear layer in the first block."""
    ends = [int(found[1]) for key in state if (found := _WEIGHT.fullmatch(key))]
    if not ends:
        raise ValueError(f"{file} has no last layer (network.3.weight); it is not in SCimilarity's layout.")
    n_blocks = max(ends)

    def take(prefix: str, names: tuple[str, ...]) -> dict[str, Tensor]:
        absent = [prefix + name for name in names if prefix + name not in state]
        if absent:
            raise ValueError(f"{file} lacks {', '.join(absent)}; it is not in SCimilarity's layout.")
        tensors = {name: state[prefix + name].detach().float() for name in names}
        odd = [prefix + name for name, value in tensors.items() if not torch.isfinite(value).all()]
        if odd:
            raise ValueError(f"{file}: {', '.join(odd)} holds values that are not finite.")
        return tensors

    blocks = []
    for i in range(n_blocks):
        at = first if i == 0 else 1
        prefix = f"network.{i}."
        linear = take(f"{prefix}{at}.", ("weight", "bias"))
        blocks.append(Block(linear, take(f"{prefix}{at + 1}.", _NORM), take(f"{prefix}{at + 2}.", ("weight",))))
    network = Network(blocks, take(f"network.{n_blocks}.", ("weight", "bias")))
    _check_shapes(network, file)
    return network


def _check_shapes(network: Network, file: Path) -> None:
    layers = [*(block.linear for block in network.blocks), network.last]
    for i, (layer, block) in enumerate(zip(layers, [*network.blocks, None], strict=True)):
        weight, bias = layer["weight"], layer["bias"]
        width = weight.shape[0]
        fits = weight.ndim == 2 and bias.shape == (width,)
        if i + 1 < len(layers):
            fits = fits and layers[i + 1]["weight"].ndim == 2 and layers[i + 1]["weight"].shape[1] == width
        if block is not None:
            fits = fits and all(v.shape == (width,) for v in block.norm.values())
            fits = fits and block.activation["weight"].shape == (1,) and bool((block.norm["running_var"] >= 0).all())
        if not fits:
            raise ValueError(f"{file}: the shapes of layer {i} do not fit each other.")
