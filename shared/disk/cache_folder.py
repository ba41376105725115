"""Where what can be made again is kept between runs, also where there is no home directory to keep it in."""

import getpass
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

HOME = "~/.cache/tessera"
# Where the libraries keep theirs, all of them below the home directory or a folder named after the user. Numba's is in
# shared/kernels/compiler.py.
LIBRARIES = {
    "HF_HOME": "huggingface",  # datasets and models of the hub
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_HOME": "torch",  # downloaded weights
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


def cache_folder() -> Path:
    """$TESSERA_CACHE, or else ~/.cache/tessera; it need not exist."""
    return Path(os.environ.get("TESSERA_CACHE") or HOME).expanduser()


def find_room_for_caches() -> None:
    """Where nothing can be kept in the home directory, have this process and the libraries keep it elsewhere.

    That is in $TESSERA_CACHE, or else in a private temporary folder, which one line names; a library's own variable is
    let be. So it is in containers, where there may be no home, and a user without a name. Call it before the libraries
    are imported: some look only then.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # what libraries call theirs
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
    # Gradio's own is one folder for all users of a machine, which belongs to the first of them.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir(), f"gradio-{os.getuid()}")))
    if _home_is_writable():
        return
    if not os.environ.get("TESSERA_CACHE"):
        with suppress(OSError):  # no temporary folder either: whoever needs one says so
            os.environ["TESSERA_CACHE"] = str(_private_folder())
            if os.environ.get("LOCAL_RANK", "0") == "0":
                log.warning(
                    "the home directory cannot be written to: caches are kept in %s. Set TESSERA_CACHE to a folder for "
                    "them to stay",
                    os.environ["TESSERA_CACHE"],
                )
    for variable, name in LIBRARIES.items():
        os.environ.setdefault(variable, str(cache_folder() / name))


def _home_is_writable() -> bool:
    """Whether ~/.cache can be written to, or be made."""
    path = Path(os.path.expanduser(HOME)).parent
    if not path.is_absolute():  # no home is known
        return False
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """A folder for temporary files that only this user can read, the same in every process where that is safe."""
    path = Path(tempfile.gettempdir(), f"tessera-{os.getuid()}")
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()  # not what a link leads to
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="tessera-"))
    return path
