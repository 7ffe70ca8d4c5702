"""Download of SCimilarity's published weights."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from isd.settings import settings

#: Heimberg et al., annotation_model_v1.
SCIMILARITY_URL = "https://zenodo.org/record/8286452/files/annotation_model_v1.tar.gz?download=1"
_ARCHIVE, _FOLDER = "annotation_model_v1.tar.gz", "annotation_model_v1"
#: What :meth:`isd.model.VAE.from_scimilarity` reads, and what may be looked at besides.
_NEEDED = ("encoder.ckpt", "decoder.ckpt", "gene_order.tsv")
_WANTED = (*_NEEDED, "layer_sizes.json")
#: The published weights are about 120 MB a network.
_MAX_BYTES = 4 * 1024**3
_MAX_MEMBERS = 100_000


def fetch_scimilarity(
    path: str | Path | None = None,
    known_hash: str | None = None,
    *,
    url: str = SCIMILARITY_URL,
    progressbar: bool | None = None,
) -> Path:
    """Download SCimilarity's ``annotation_model_v1`` and unpack what :meth:`isd.model.VAE.from_scimilarity` reads.

    The archive stays beside the folder, so that nothing is downloaded twice. Nothing in it is executed; of the
    archive only ``encoder.ckpt``, ``decoder.ckpt``, ``gene_order.tsv`` and ``layer_sizes.json`` are unpacked.

    Parameters
    ----------
    path
        Folder to download to; ``None`` takes the user's cache folder for ``isodiff``.
    known_hash
        Hash that the archive must have, as ``"sha256:..."`` or ``"md5:..."``. The archive's page on Zenodo shows its md5. ``None``
        checks nothing; pooch then logs the hash, so that the next download can be checked against it.
    url
        Address of the archive: a mirror, or a later version of the same layout.
    progressbar
        Show how far the download is; by default as ``isd.settings.progress`` says.

    Returns
    -------
    The folder with the files.

    Raises
    ------
    ImportError
        Without pooch: ``pip install "isodiff[download]"``.
    ValueError
        If the hash is another, or the archive is damaged, lacks a file, points outside of its folder, or is larger than 4 GB
        unpacked.
    OSError
        If the address cannot be reached, or the folder cannot be written.

    References
    ----------
    Heimberg et al., A cell atlas foundation model for scalable search of similar human cells (2024).

    Examples
    --------
    >>> import isd
    >>> folder = isd.datasets.fetch_scimilarity()  # doctest: +SKIP
    """
    try:
        import pooch
    except ImportError as e:
        raise ImportError('fetch_scimilarity downloads with pooch: pip install "isodiff[download]"') from e
    base = Path(pooch.os_cache("isodiff") if path is None else path).expanduser().resolve()
    folder = base / _FOLDER
    if all((folder / name).is_file() for name in _NEEDED):
        return folder
    base.mkdir(parents=True, exist_ok=True)
    archive = pooch.retrieve(
        url, known_hash=known_hash, fname=_ARCHIVE, path=base, progressbar=settings.show_progress(progressbar)
    )
    new = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}.", dir=base))
    try:
        _unpack(Path(archive), new)
        new.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # an earlier one that was not whole
        new.replace(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the wanted files of an archive into a folder, without the folders that they are in there."""
    found: dict[str, tarfile.TarInfo] = {}
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number, member in enumerate(tar):
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts:
                    raise ValueError(f"{archive} holds {member.name!r}, a place outside of its folder: not unpacked.")
                if number >= _MAX_MEMBERS:
                    raise ValueError(f"{archive} holds more than {_MAX_MEMBERS} files: not unpacked.")
                if place.name not in _WANTED or len(place.parts) > 2:
                    continue
                if not member.isfile():
                    raise ValueError(f"{archive}: {member.name!r} is a link or no plain file: not unpacked.")
                if place.name in found:
                    raise ValueError(f"{archive} holds {place.name} more than once: not unpacked.")
                total += member.size
                if total > _MAX_BYTES:
                    raise ValueError(
                        f"{archive}: {', '.join([*found, place.name])} take {total / 1024**3:.1f} GB unpacked, more than the "
                        f"{_MAX_BYTES / 1024**3:.0f} GB that are allowed: not unpacked."
                    )
                found[place.name] = member.replace(name=place.name, deep=False)
                tar.extract(found[place.name], folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as e:
        if isinstance(e, OSError) and not isinstance(e, tarfile.ReadError) and e.errno is not None:
            raise  # of the disk, and not of the archive
        raise ValueError(f"{archive} is no whole tar.gz archive ({e}); delete it and download it again.") from e
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(f"{archive} lacks {', '.join(missing)}; expected SCimilarity's annotation_model_v1.")
