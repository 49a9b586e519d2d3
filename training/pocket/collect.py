"""Gather the photographs that the pocket model is trained on from Debian packages, the same way every time.

    python -m training.pocket.collect --out training/data

Each package named in sources.toml is downloaded with `apt-get download` and unpacked beside, never installed. Its
pictures are cut to 16:9, thinned of near-duplicates and flat fills, and packed as `photos.tar` with `sources.json`,
which names every picture's package, version, path, licence and author. `READY` is written last.
"""

import argparse
import fnmatch
import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import tomllib
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
RATIO = 16 / 9
SMALLEST = (480, 270)
LARGEST = (1152, 648)
STEPS = (  # qualities and sizes of the JPEGs, until all fit the budget
    (90, LARGEST),
    (87, LARGEST),
    (85, LARGEST),
    (85, (1024, 576)),
    (85, (960, 540)),
    (83, (928, 522)),
    (82, (896, 504)),
)
BUDGET = 40_000_000  # bytes of photos.tar: what travels to a training machine at once
SAME = 0.94  # correlation of two thumbnails from which they show one picture
FLAT = 2.2  # mean absolute gradient of the 8-bit luminance, at 480 pixels across, below which nothing is there to move
FORBIDDEN = re.compile(r"\b(NC|ND)\b|non-?commercial|no-?deriv|sampling", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Package:
    """One entry of sources.toml."""

    name: str
    licence: str
    holds: str
    only: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    by_name: bool = False
    terms: dict[str, tuple[str, str]] = field(default_factory=dict)

    def takes(self, path: str) -> bool:
        """Whether the picture at this path in the package is wanted."""
        return any(fnmatch.fnmatch(path, p) for p in self.only) and not any(
            fnmatch.fnmatch(path, p) for p in self.exclude
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Where a picture comes from and on what terms it may be used."""

    package: str
    version: str
    path: str
    licence: str
    author: str


@dataclass(slots=True, eq=False)
class Photo:
    """One picture, cut to 16:9, and what tells it from the others."""

    source: Source
    image: Image.Image
    crop: int
    pixels: int
    detail: float
    signature: np.ndarray = field(repr=False)
    name: str = ""


def read_packages(path: Path) -> list[Package]:
    """The packages of a sources.toml, in its order."""
    entries = tomllib.loads(path.read_text("utf-8"))["package"]
    return [Package(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]


def fetch(package: Package, cache: Path) -> tuple[Path, str]:
    """The folder a package is unpacked in, and the package's version; what was fetched before is used again."""
    found = sorted(cache.glob(f"{package.name}_*.deb"))
    if not found:
        subprocess.run(["apt-get", "-qq", "download", package.name], cwd=cache, check=True)
        found = sorted(cache.glob(f"{package.name}_*.deb"))
    deb = found[-1]
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True).stdout
    folder = cache / package.name
    if not folder.exists():
        partial = cache / f"{package.name}.partial"
        subprocess.run(["dpkg-deb", "-x", deb, partial], check=True)
        partial.rename(folder)
    return folder, version.strip()


class Terms:
    """The licences and authors that a package's debian/copyright states, file by file where it does."""

    def __init__(self, folder: Path, package: Package) -> None:
        self.package = package
        path = folder / "usr/share/doc" / package.name / "copyright"
        text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        self.rules: list[tuple[str, str, str]] = []
        for paragraph in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([A-Z][\w-]*):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, re.MULTILINE))
            if "Files" in fields and "License" in fields:
                author = "; ".join(line.strip() for line in fields.get("Copyright", "").splitlines() if line.strip())
                licence = fields["License"].splitlines()[0].strip()
                self.rules += [(pattern, licence, author) for pattern in fields["Files"].split()]

    def of(self, path: str) -> tuple[str, str]:
        """Licence and author of an installed file: the last paragraph that names it, as the format rules.

        A source tree's paths differ from the installed ones in what stands before them, so a pattern need only
        match the end of the path.
        """
        licence, author = self.package.licence, ""
        for pattern, its_licence, its_author in self.rules:
            name = pattern.rsplit("/", 1)[-1]
            tail = name if self.package.by_name and "*" not in name else pattern.removeprefix("./")
            # Some packages list a JPEG and ship it as WebP.
            if not pattern.startswith("debian/") and fnmatch.fnmatch(without_suffix(path), f"*/{without_suffix(tail)}"):
                licence, author = its_licence, its_author
        return next((t for p, t in self.package.terms.items() if fnmatch.fnmatch(path, p)), (licence, author))


def without_suffix(path: str) -> str:
    """A path without the suffix that says which kind of picture it is."""
    return path.rsplit(".", 1)[0] if path.lower().endswith(SUFFIXES) else path


def pictures(folder: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """Path in the package and bytes of each wanted picture, those inside compiled resource files included."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        inside = path.relative_to(folder).as_posix()
        if path.suffix == ".rcc":
            inner = ((f"{inside}/{name}", data) for name, data in resources(path.read_bytes()))
        elif inside.lower().endswith(SUFFIXES) and package.takes(inside):
            inner = iter([(inside, path.read_bytes())])
        else:
            continue
        yield from ((name, data) for name, data in inner if name.lower().endswith(SUFFIXES) and package.takes(name))


def resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in a compiled Qt resource (rcc), a tree of 14- or 22-byte nodes; zlib unpacked."""
    magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres":
        return
    node_size = 14 if version < 2 else 22

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name_at, flags = struct.unpack_from(">IH", data, tree + node * node_size)
        (length,) = struct.unpack_from(">H", data, names + name_at)
        name = data[names + name_at + 6 :][: 2 * length].decode("utf-16-be") if node else ""
        path = f"{folder}/{name}".lstrip("/")
        if flags & 2:
            count, first = struct.unpack_from(">II", data, tree + node * node_size + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & 4:  # compressed by zstd: none of our packages does
            (at,) = struct.unpack_from(">I", data, tree + node * node_size + 10)
            (size,) = struct.unpack_from(">I", data, contents + at)
            content = data[contents + at + 4 :][:size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def open_picture(data: bytes) -> Image.Image | None:
    """The picture in RGB, or None for what is damaged, too small, or cut out on a transparent ground."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width < SMALLEST[0] or image.height < SMALLEST[1]:
            return None
        image.draft("RGB", (2 * LARGEST[0], 2 * LARGEST[1]))  # a JPEG of 60 megapixels need not be decoded whole
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.mean(np.asarray(image.getchannel("A").resize((64, 64))) < 250) > 0.01:
            return None
    return image.convert("RGB")


def crops(image: Image.Image) -> list[Image.Image]:
    """One 16:9 cut from the middle, or two or three side by side where the picture is far wider or taller."""
    width, height = image.size
    ratio = width / height
    excess = max(ratio / RATIO, RATIO / ratio)  # 1.33 for a 4:3 photograph, 1.78 for a square, 2.37 for a 3:4 portrait
    count = 1 if excess < 1.8 else 2 if excess < 2.4 else 3
    w, h = (round(height * RATIO), height) if ratio > RATIO else (width, round(width / RATIO))
    spare_x, spare_y = width - w, height - h
    places = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return [
        image.crop((round(spare_x * p), round(spare_y * p), round(spare_x * p) + w, round(spare_y * p) + h))
        for p in places
    ]


def signature(image: Image.Image) -> np.ndarray:
    """A perceptual hash: the 24×24 luminance at mean 0 and norm 1, so that a dot product is a correlation."""
    values = np.asarray(image.convert("L").resize((24, 24), Image.Resampling.BOX), np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def detail(image: Image.Image) -> float:
    """Mean absolute gradient of the luminance at 480×270, in 8-bit steps: 0 for a plain fill, 5–20 for photographs."""
    luminance = np.asarray(image.convert("L").resize(SMALLEST, Image.Resampling.BOX), np.float32)
    return float(np.abs(np.diff(luminance, axis=0)).mean() + np.abs(np.diff(luminance, axis=1)).mean())


def photos_of(package: Package, cache: Path) -> tuple[list[Photo], Counter[str]]:
    """The usable pictures of one package, and how many were left out for which reason."""
    folder, version = fetch(package, cache)
    terms, left_out, found = Terms(folder, package), Counter[str](), []

    def take(item: tuple[str, bytes]) -> list[Photo] | str:
        path, data = item
        licence, author = terms.of(path)
        if FORBIDDEN.search(licence):
            return "licence"
        image = open_picture(data)
        if image is None:
            return "small, damaged or transparent"
        if detail(image) < FLAT:
            return "flat"
        source, pixels = Source(package.name, version, path, licence, author), image.width * image.height
        made = []
        for number, crop in enumerate(crops(image)):
            if crop.width >= SMALLEST[0] and crop.height >= SMALLEST[1]:
                crop.thumbnail(LARGEST, Image.Resampling.LANCZOS)
                made.append(Photo(source, crop, number, pixels, detail(crop), signature(crop)))
        return made or "small, damaged or transparent"

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(take, pictures(folder, package)):
            if isinstance(result, str):
                left_out[result] += 1
            else:
                found += result
    return found, left_out


def distinct(photos: list[Photo], left_out: Counter[str]) -> list[Photo]:
    """The photographs without near-duplicates: of each set the one with most pixels stays."""
    kept: list[Photo] = []
    for photo in sorted(photos, key=lambda p: (-p.pixels, p.source.package, p.source.path, p.crop)):
        mean = np.asarray(photo.image.resize((1, 1), Image.Resampling.BOX), np.float32)
        # A night view of the same place is a picture of its own: only like colours make a duplicate.
        if any(
            float(photo.signature @ other.signature) > SAME
            and np.abs(mean - np.asarray(other.image.resize((1, 1), Image.Resampling.BOX), np.float32)).max() < 40
            for other in kept
        ):
            left_out["duplicate"] += 1
        else:
            kept.append(photo)
    return sorted(kept, key=lambda p: (p.source.package, p.source.path, p.crop))


def evaluation_pictures() -> dict[str, Image.Image]:
    """The photographs that the model is judged on, from the installed scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    samples = load_sample_images()
    arrays |= {Path(name).stem: array for name, array in zip(samples.filenames, samples.images, strict=True)}
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def refuse_evaluation_pictures(photos: list[Photo]) -> None:
    """Stop if a training photograph shows what an evaluation photograph shows, whole, cut or mirrored."""
    for name, image in evaluation_pictures().items():
        for view in [image, *crops(image)]:
            for mark in (signature(view), signature(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                for photo in photos:
                    likeness = float(photo.signature @ mark)
                    if likeness > 0.9:
                        raise SystemExit(
                            f"{photo.source.path} of {photo.source.package} shows the evaluation photograph {name} "
                            f"(correlation {likeness:.2f}); exclude it in sources.toml"
                        )


def encode(photos: list[Photo]) -> tuple[list[bytes], str]:
    """JPEGs that fit the budget together, and how they were made: first the quality falls, then the size."""
    for quality, size in STEPS:
        encoded = []
        for photo in photos:
            photo.image.thumbnail(size, Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            photo.image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
            encoded.append(buffer.getvalue())
        made = f"quality {quality}, at most {size[0]}×{size[1]}"
        print(f"{made}: {sum(map(len, encoded)):,} bytes")
        if sum(len(data) + 1024 for data in encoded) < BUDGET - 400_000:  # what is left holds sources.json
            return encoded, made
    raise SystemExit(f"{len(photos)} photographs do not fit in {BUDGET:,} bytes; leave some out in sources.toml")


def name_all(photos: list[Photo]) -> None:
    """Name each photograph by its package and a number."""
    numbers: Counter[str] = Counter()
    for photo in photos:
        numbers[photo.source.package] += 1
        photo.name = f"{photo.source.package}-{numbers[photo.source.package]:03d}.jpg"


def pack(photos: list[Photo], out: Path, left_out: dict[str, Counter[str]]) -> None:
    """Write sources.json, photos.tar and, last, READY; each appears whole or not at all."""
    encoded, made = encode(photos)
    record = [
        {"name": p.name, **asdict(p.source), "crop": p.crop, "size": p.image.size, "detail": round(p.detail, 2)}
        for p in photos
    ]
    sources = json.dumps(record, indent=1, ensure_ascii=False).encode()
    (out / "READY").unlink(missing_ok=True)
    partial = out / "photos.tar.partial"
    with tarfile.open(partial, "w") as archive:
        for name, data in [("sources.json", sources), *((p.name, d) for p, d in zip(photos, encoded, strict=True))]:
            member = tarfile.TarInfo(name)  # its time stays 0, so that the same pictures give the same archive
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    partial.rename(out / "photos.tar")
    (out / "sources.json").write_bytes(sources)
    counts = {
        "photographs": len(photos),
        "pictures": len({(p.source.package, p.source.path) for p in photos}),
        "bytes": (out / "photos.tar").stat().st_size,
        "made": made,
        "packages": dict(Counter(p.source.package for p in photos)),
        "left_out": {name: dict(reasons) for name, reasons in left_out.items() if reasons},
    }
    (out / "READY").write_text(json.dumps(counts, indent=1) + "\n")


def contact_sheets(photos: list[Photo], out: Path, columns: int = 8, rows: int = 9) -> None:
    """PNG sheets of every photograph under its name, to be looked at before training."""
    width, height = 196, 110
    for number, start in enumerate(range(0, len(photos), columns * rows)):
        sheet = Image.new("RGB", (columns * width, rows * (height + 14)), "white")
        for i, photo in enumerate(photos[start : start + columns * rows]):
            x, y = i % columns * width, i // columns * (height + 14)
            sheet.paste(photo.image.resize((width - 4, height - 2)), (x, y))
            label = f"{photo.name.removesuffix('.jpg')[-12:]} {Path(photo.source.path).name}"[:32]
            ImageDraw.Draw(sheet).text((x, y + height - 2), label, fill="black")
        sheet.save(out / f"sheet-{number:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("training/data"))
    parser.add_argument("--cache", type=Path, help="where packages are kept (default: OUT/packages)")
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.toml"))
    parser.add_argument("--sheets", action="store_true", help="write contact sheets too")
    args = parser.parse_args()
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("apt-get and dpkg-deb are needed: run this on Debian 12 or in a container of it")
    cache = args.cache or args.out / "packages"
    cache.mkdir(parents=True, exist_ok=True)

    Image.MAX_IMAGE_PIXELS = 200_000_000
    photos, left_out = [], {}
    for package in read_packages(args.sources):
        found, left_out[package.name] = photos_of(package, cache)
        found = distinct(found, left_out[package.name])
        print(f"{package.name}: {len(found)} photographs, left out {dict(left_out[package.name])}")
        photos += found
    left_out["across packages"] = Counter()
    photos = distinct(photos, left_out["across packages"])
    refuse_evaluation_pictures(photos)
    name_all(photos)
    if args.sheets:
        contact_sheets(photos, args.out)
    pack(photos, args.out, left_out)
    print((args.out / "READY").read_text())


if __name__ == "__main__":
    main()
