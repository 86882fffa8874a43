"""Files the project does not carry: fetched when asked for, verified by checksum, and kept in a cache.

Nothing on the default path needs one. No address in `REMOTE` was tried when this was written, as the project
is built without a network; checksums and sizes are of copies that came another way. No file is unpickled.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mammomil.files import InputError, sha256

_CHUNK = 1 << 14  # bytes; as much can be lost when a connection is cut
_TIMEOUT = 30  # seconds without a byte


class Remote(NamedTuple):
    """A file in the network.

    Attributes:
        name: what `fetch` calls it; with the ending of the address, its name in the cache.
        url: its address, http or https.
        sha256: its checksum, in hexadecimal.
        bytes: its size.
        licence: under what terms it may be used, and whose work it is.
        note: a sentence for those who have to get it by hand.
    """

    name: str
    url: str
    sha256: str
    bytes: int
    licence: str
    note: str


REMOTE = {
    remote.name: remote
    for remote in (
        Remote(
            "reader-study-scores",
            "https://raw.githubusercontent.com/nyukat/mammography_metarepository/HEAD/reader_study/results.csv",
            "3068b98d9739409b5087a23ae146947d448afc1f475bd68eff30f13489a99649",
            152_692,
            "BSD-2; Stadnick, Witowski et al., Meta-repository of screening mammography classifiers",
            "A copy you have can be named: mammomil experiment reader-study --scores FILE.",
        ),
    )
}


def cache_folder() -> Path:
    """Return where things are kept between runs; the folder need not exist.

    It is the environment variable MAMMOMIL_CACHE, or where the system keeps caches.
    """
    import pooch

    return Path(os.environ.get("MAMMOMIL_CACHE") or pooch.os_cache("mammomil")).expanduser()


def fetch(name: str, folder: Path | None = None) -> Path:
    """Return a file of `REMOTE`, from the cache if it is there, else from the network.

    A download that was cut goes on where it stopped, also in a later call, if the server can do that. Several
    processes may fetch the same file at the same time.

    Args:
        name: a name in `REMOTE`.
        folder: the cache; None is `cache_folder`.

    Returns:
        The path of the file; its checksum is right.

    Raises:
        InputError: `name` is unknown, the file cannot be fetched or stored, or its checksum is wrong.
    """
    import pooch
    import requests

    if name not in REMOTE:
        raise InputError(f"{name!r}: no such download. There is: {', '.join(REMOTE)}.")
    remote = REMOTE[name]
    path = (folder or cache_folder()).expanduser() / (name + Path(remote.url).suffix)
    store = pooch.create(
        path.parent,
        base_url="",
        registry={path.name: f"sha256:{remote.sha256}"},
        urls={path.name: remote.url},
        retry_if_failed=1,
    )
    by_hand = (
        f"put the file at {path} by hand; its sha256 is to be {remote.sha256} "
        f"({remote.bytes:,} bytes). {remote.note}"
    )
    try:
        return Path(store.fetch(path.name, downloader=_Resuming(remote, path, by_hand)))
    except requests.RequestException as error:
        raise InputError(
            f"{remote.url}: cannot be fetched ({_reason(error)}). Connect to the network and run this once "
            f"again, or {by_hand}"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read or written ({error.strerror or error}). Set MAMMOMIL_CACHE to a folder "
            f"that you can write, or {by_hand}"
        ) from error


class _Resuming:
    """A downloader for pooch, which has none that goes on with a part.

    What came before a connection was cut waits in NAME.part. Who goes on with it first takes it away under a
    name of its own, so that two processes never write the same file; the second one starts anew.
    """

    def __init__(self, remote: Remote, path: Path, by_hand: str):
        self.remote, self.by_hand = remote, by_hand
        self.part = path.with_name(f"{path.name}.part")

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Fill `output_file`, an empty file beside the one it will be renamed to."""
        target = Path(output_file)
        with suppress(FileNotFoundError):
            self.part.replace(target)
        try:
            self._receive(url, target)
        except BaseException:  # Ctrl-C included
            if target.stat().st_size:
                target.replace(self.part)
            raise
        if (found := sha256(target)) != self.remote.sha256:
            raise InputError(  # pooch deletes what came and tries once more, without a part
                f"{url}: what came has sha256 {found}, and {self.remote.sha256} is expected. The file may "
                f"have changed, or something on the way answered in its place: {self.by_hand}"
            )
        target.chmod(0o644)  # temporary files are their owner's alone, a cache may be shared

    def _receive(self, url: str, target: Path) -> None:
        """Write from the network what `target` still lacks."""
        import requests
        from tqdm.auto import tqdm

        have = target.stat().st_size
        if have >= self.remote.bytes:
            have = 0
        headers = {"Accept-Encoding": "identity"}  # compressed, a range would count other bytes
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:  # the part is longer than the file: start anew next time
                target.write_bytes(b"")
            response.raise_for_status()
            if response.status_code != 206:
                have = 0
            bar = tqdm(
                initial=have, total=self.remote.bytes, desc=self.remote.name, unit="B", unit_scale=True
            )
            with bar, target.open("r+b") as file:
                file.seek(have)
                file.truncate()
                for chunk in response.iter_content(_CHUNK):
                    bar.update(file.write(chunk))
                    if file.tell() > self.remote.bytes:  # not our file, and it may never end
                        break


def _reason(error: Exception) -> str:
    """Say in a few words why a request failed."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.status_code} {response.reason}"
    return type(error).__name__
