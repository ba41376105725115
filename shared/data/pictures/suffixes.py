"""What pictures' files are called, which of them can be read here, and how they begin."""

import importlib
import re
from contextlib import suppress

from PIL import Image

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
IMAGE_SUFFIXES |= {".apng", ".jpe", ".tga", ".tif", ".tiff", ".webp"}
READERS = {"pillow_heif": {".heic", ".heif", ".hif"}, "pillow_jxl": {".jxl"}}  # they teach Pillow to read more


def _teach_pillow() -> set[str]:
    """Let the packages of `READERS` that are installed do so; the suffixes that can be read now."""
    taught: set[str] = set()
    for package, suffixes in READERS.items():
        with suppress(ImportError):
            module = importlib.import_module(package)  # pillow_jxl does it when it is imported
            getattr(module, "register_heif_opener", lambda: None)()
            taught |= suffixes
    return taught


Image.init()
READABLE_SUFFIXES = (IMAGE_SUFFIXES | _teach_pillow()) & Image.EXTENSION.keys()
# Of these suffixes, and no others: for PostScript, whatever the file is called, Pillow runs a program.
FORMATS = tuple(sorted({Image.EXTENSION[suffix] for suffix in READABLE_SUFFIXES}))
RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef"}
RAW_SUFFIXES |= {".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
# Pictures to whoever put them there, which are never read here.
DRAWINGS = {".ai", ".cur", ".dcm", ".dds", ".dib", ".dicom", ".djvu", ".emf", ".eps", ".exr", ".fits", ".hdr", ".heics"}
DRAWINGS |= {".icns", ".ico", ".jxr", ".nii", ".pam", ".pcx", ".pdf", ".pfm", ".psd", ".qoi", ".rgb", ".sgi", ".svg"}
DRAWINGS |= {".svgz", ".wmf", ".xbm", ".xcf", ".xpm"}
PICTURE_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif", ".hif", ".jxl"} | RAW_SUFFIXES | DRAWINGS
# First bytes of formats that a package reads, and the package.
NEED_PACKAGES = (
    ("HEIC", re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL), "pillow-heif", ".heic"),
    ("AVIF", re.compile(rb"....ftypavi", re.DOTALL), "pillow-avif-plugin", ".avif"),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "pillow-jxl-plugin", ".jxl"),
)
DEVELOPED = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", re.DOTALL)  # what no camera's raw file begins with
SIGNATURES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|BM.{12}|II[*+]\0|MM\0[*+]|RIFF....WEBP|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6]\s"
    rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cxms]|mif1|msf1)|\xff\x0a|\0\0\0\x0cJXL ",
    re.DOTALL,
)
