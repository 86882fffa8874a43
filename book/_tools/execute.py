"""Run the chapters that have changed, one per core, and keep their outputs where Jupyter Book finds them.

`make book` calls this first: Jupyter Book itself runs chapters one after the other, and runs one again only
when its own code has changed. Here all run again when the library has changed.
"""

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

BOOK = Path(__file__).resolve().parents[1]
TIMEOUT = 180  # seconds a cell may take, as in _config.yml


def library_key() -> str:
    """Checksum of every file a chapter's output may come from, besides its own cells."""
    import mammomil
    from mammomil.weights import SHIPPED

    home = Path(mammomil.__file__).parent
    files = [p for p in home.rglob("*") if p.suffix in (".py", ".js", ".css", ".svg", ".json")]
    files += (SHIPPED / "weights").rglob("*.safetensors")
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.name != "chapter_times.json":  # written by the chapters' own runs
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Run what is not in the cache; return 1 if a chapter fails, with its last lines."""
    folder, key = BOOK / "_build" / ".jupyter_cache", library_key()
    note = folder / "library.txt"
    if folder.is_dir() and not (note.exists() and note.read_text() == key):
        shutil.rmtree(folder)
    cache = get_cache(folder)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(key)
    paths = sorted(str(p) for room in ("chapters", "instructors") for p in (BOOK / room).glob("*.ipynb"))
    for path in paths:
        cache.add_nb_to_project(path)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    executor = load_executor("local-parallel", cache, logger=logging.getLogger("execute"))
    done = executor.run_and_cache(filter_uris=paths, timeout=TIMEOUT)
    failed = [*done.excepted, *done.errored]
    for path in failed:
        said = cache.get_project_record(path).traceback or "see above"
        print(f"{Path(path).name} failed:\n{said[-2000:]}", file=sys.stderr)
    print(f"{len(done.succeeded)} notebooks run, {len(paths) - len(failed) - len(done.succeeded)} unchanged.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
