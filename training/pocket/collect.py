"""Collect the photographs that the pocket model is trained on from Debian packages, reproducibly.

    python -m training.pocket.collect --out training/data

Each package in sources.toml is downloaded with `apt-get download` and unpacked into the cache folder; nothing is
installed. Images are cropped to 16:9; near-duplicates and flat images are dropped. The rest is written to `photos.tar`
with `sources.json`, which lists the package, version, path, licence and author of every image. `READY` is written last.
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
ASPECT_RATIO = 16 / 9
MIN_SIZE = (480, 270)
MAX_SIZE = (1152, 648)
ENCODINGS = (  # JPEG qualities and maximum sizes, tried in order until the archive fits the budget
    (90, MAX_SIZE),
    (87, MAX_SIZE),
    (85, MAX_SIZE),
    (85, (1024, 576)),
    (85, (960, 540)),
    (83, (928, 522)),
    (82, (896, 504)),
)
MAX_TAR_BYTES = 40_000_000  # maximum size of photos.tar in bytes
DUPLICATE_CORRELATION = 0.94  # correlation of two thumbnails above which they count as duplicates
MIN_DETAIL = 2.2  # minimum `detail`: flatter images have nothing that could visibly move
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

    def matches(self, path: str) -> bool:
        """Return whether to use the image at this path in the package."""
        return any(fnmatch.fnmatch(path, p) for p in self.only) and not any(
            fnmatch.fnmatch(path, p) for p in self.exclude
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Origin, licence and author of an image."""

    package: str
    version: str
    path: str
    licence: str
    author: str


@dataclass(slots=True, eq=False)
class Photo:
    """One image, cropped to 16:9, with the values that duplicates are found by."""

    source: Source
    image: Image.Image
    crop: int
    pixels: int
    detail: float
    signature: np.ndarray = field(repr=False)
    name: str = ""


def read_packages(path: Path) -> list[Package]:
    """Return the packages of a sources.toml, in file order."""
    entries = tomllib.loads(path.read_text("utf-8"))["package"]
    return [Package(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]


def fetch(package: Package, cache: Path) -> tuple[Path, str]:
    """Download and unpack a package unless the cache has it; return its folder and version."""
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


class Licences:
    """Licences and authors from a package's debian/copyright, per file where it lists them."""

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
        """Return licence and author of an installed file, from the last paragraph that matches it (DEP-5).

        Paths in the source tree and installed paths have different prefixes, so a pattern only has to match the end
        of the path.
        """
        licence, author = self.package.licence, ""
        for pattern, rule_licence, rule_author in self.rules:
            name = pattern.rsplit("/", 1)[-1]
            tail = name if self.package.by_name and "*" not in name else pattern.removeprefix("./")
            # Some packages list a JPEG and ship it as WebP.
            if not pattern.startswith("debian/") and fnmatch.fnmatch(without_suffix(path), f"*/{without_suffix(tail)}"):
                licence, author = rule_licence, rule_author
        return next((t for p, t in self.package.terms.items() if fnmatch.fnmatch(path, p)), (licence, author))


def without_suffix(path: str) -> str:
    """Return a path without its image extension."""
    return path.rsplit(".", 1)[0] if path.lower().endswith(SUFFIXES) else path


def images_in(folder: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of each image to use, including those inside compiled Qt resource files."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        inside = path.relative_to(folder).as_posix()
        if path.suffix == ".rcc":
            inner = ((f"{inside}/{name}", data) for name, data in resource_files(path.read_bytes()))
        elif inside.lower().endswith(SUFFIXES) and package.matches(inside):
            inner = iter([(inside, path.read_bytes())])
        else:
            continue
        yield from ((name, data) for name, data in inner if name.lower().endswith(SUFFIXES) and package.matches(name))


def resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and decompressed bytes of each file in a compiled Qt resource, a tree of 14- or 22-byte nodes."""
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
        elif not flags & 4:  # skip zstd-compressed files; none of the packages has any
            (at,) = struct.unpack_from(">I", data, tree + node * node_size + 10)
            (size,) = struct.unpack_from(">I", data, contents + at)
            content = data[contents + at + 4 :][:size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def open_image(data: bytes) -> Image.Image | None:
    """Return the image in RGB, or None if it is damaged, too small or has a transparent background."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width < MIN_SIZE[0] or image.height < MIN_SIZE[1]:
            return None
        image.draft("RGB", (2 * MAX_SIZE[0], 2 * MAX_SIZE[1]))  # decode huge JPEGs at a reduced scale
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.mean(np.asarray(image.getchannel("A").resize((64, 64))) < 250) > 0.01:
            return None
    return image.convert("RGB")


def crops(image: Image.Image) -> list[Image.Image]:
    """Return one centred 16:9 crop, or two or three side by side if the image is much wider or taller."""
    width, height = image.size
    ratio = width / height
    excess = max(
        ratio / ASPECT_RATIO, ASPECT_RATIO / ratio
    )  # 1.33 for a 4:3 photograph, 1.78 for a square, 2.37 for a 3:4 portrait
    count = 1 if excess < 1.8 else 2 if excess < 2.4 else 3
    w, h = (round(height * ASPECT_RATIO), height) if ratio > ASPECT_RATIO else (width, round(width / ASPECT_RATIO))
    spare_x, spare_y = width - w, height - h
    places = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return [
        image.crop((round(spare_x * p), round(spare_y * p), round(spare_x * p) + w, round(spare_y * p) + h))
        for p in places
    ]


def signature(image: Image.Image) -> np.ndarray:
    """Return a perceptual hash: 24×24 luminance with mean 0 and norm 1; a dot product of two is their correlation."""
    values = np.asarray(image.convert("L").resize((24, 24), Image.Resampling.BOX), np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def detail(image: Image.Image) -> float:
    """Return the mean absolute gradient of the 8-bit luminance at 480×270: 0 for a plain fill, 5–20 for photographs."""
    luminance = np.asarray(image.convert("L").resize(MIN_SIZE, Image.Resampling.BOX), np.float32)
    return float(np.abs(np.diff(luminance, axis=0)).mean() + np.abs(np.diff(luminance, axis=1)).mean())


def photos_of(package: Package, cache: Path) -> tuple[list[Photo], Counter[str]]:
    """Return the usable photographs of one package, and how many images were skipped for each reason."""
    folder, version = fetch(package, cache)
    terms, skipped, found = Licences(folder, package), Counter[str](), []

    def process(item: tuple[str, bytes]) -> list[Photo] | str:
        path, data = item
        licence, author = terms.of(path)
        if FORBIDDEN.search(licence):
            return "licence"
        image = open_image(data)
        if image is None:
            return "small, damaged or transparent"
        if detail(image) < MIN_DETAIL:
            return "flat"
        source, pixels = Source(package.name, version, path, licence, author), image.width * image.height
        cropped = []
        for number, crop in enumerate(crops(image)):
            if crop.width >= MIN_SIZE[0] and crop.height >= MIN_SIZE[1]:
                crop.thumbnail(MAX_SIZE, Image.Resampling.LANCZOS)
                cropped.append(Photo(source, crop, number, pixels, detail(crop), signature(crop)))
        return cropped or "small, damaged or transparent"

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(process, images_in(folder, package)):
            if isinstance(result, str):
                skipped[result] += 1
            else:
                found += result
    return found, skipped


def drop_duplicates(photos: list[Photo], skipped: Counter[str]) -> list[Photo]:
    """Return the photographs without near-duplicates; of each set of duplicates, keep the one with the most pixels."""
    unique: list[Photo] = []
    for photo in sorted(photos, key=lambda p: (-p.pixels, p.source.package, p.source.path, p.crop)):
        mean = np.asarray(photo.image.resize((1, 1), Image.Resampling.BOX), np.float32)
        # Images with different mean colours, such as day and night views of one place, are not duplicates.
        if any(
            float(photo.signature @ other.signature) > DUPLICATE_CORRELATION
            and np.abs(mean - np.asarray(other.image.resize((1, 1), Image.Resampling.BOX), np.float32)).max() < 40
            for other in unique
        ):
            skipped["duplicate"] += 1
        else:
            unique.append(photo)
    return sorted(unique, key=lambda p: (p.source.package, p.source.path, p.crop))


def evaluation_images() -> dict[str, Image.Image]:
    """Return sample photographs of scikit-image and scikit-learn, which must not be trained on."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    samples = load_sample_images()
    arrays |= {Path(name).stem: array for name, array in zip(samples.filenames, samples.images, strict=True)}
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def check_no_evaluation_images(photos: list[Photo]) -> None:
    """Exit with an error if a training photograph matches an evaluation photograph, whole, cropped or mirrored."""
    for name, image in evaluation_images().items():
        for view in [image, *crops(image)]:
            for mark in (signature(view), signature(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                for photo in photos:
                    likeness = float(photo.signature @ mark)
                    if likeness > 0.9:
                        raise SystemExit(
                            f"{photo.source.path} of {photo.source.package} matches the evaluation photograph {name} "
                            f"(correlation {likeness:.2f}); exclude it in sources.toml"
                        )


def encode(photos: list[Photo]) -> tuple[list[bytes], str]:
    """Return JPEGs that together fit the budget, and their quality and size; quality is reduced first, then size."""
    for quality, size in ENCODINGS:
        encoded = []
        for photo in photos:
            photo.image.thumbnail(size, Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            photo.image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
            encoded.append(buffer.getvalue())
        encoding = f"quality {quality}, at most {size[0]}×{size[1]}"
        print(f"{encoding}: {sum(map(len, encoded)):,} bytes")
        if sum(len(data) + 1024 for data in encoded) < MAX_TAR_BYTES - 400_000:  # the rest is for sources.json
            return encoded, encoding
    raise SystemExit(f"{len(photos)} photographs do not fit in {MAX_TAR_BYTES:,} bytes; exclude some in sources.toml")


def assign_names(photos: list[Photo]) -> None:
    """Name each photograph by its package and a number."""
    numbers: Counter[str] = Counter()
    for photo in photos:
        numbers[photo.source.package] += 1
        photo.name = f"{photo.source.package}-{numbers[photo.source.package]:03d}.jpg"


def pack(photos: list[Photo], out: Path, skipped: dict[str, Counter[str]]) -> None:
    """Write photos.tar, sources.json and, last, READY."""
    encoded, encoding = encode(photos)
    record = [
        {"name": p.name, **asdict(p.source), "crop": p.crop, "size": p.image.size, "detail": round(p.detail, 2)}
        for p in photos
    ]
    sources = json.dumps(record, indent=1, ensure_ascii=False).encode()
    (out / "READY").unlink(missing_ok=True)
    partial = out / "photos.tar.partial"
    with tarfile.open(partial, "w") as archive:
        for name, data in [("sources.json", sources), *((p.name, d) for p, d in zip(photos, encoded, strict=True))]:
            member = tarfile.TarInfo(name)  # mtime stays 0, so that the same images give the same archive
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    partial.rename(out / "photos.tar")
    (out / "sources.json").write_bytes(sources)
    counts = {
        "photographs": len(photos),
        "pictures": len({(p.source.package, p.source.path) for p in photos}),
        "bytes": (out / "photos.tar").stat().st_size,
        "made": encoding,
        "packages": dict(Counter(p.source.package for p in photos)),
        "left_out": {name: dict(reasons) for name, reasons in skipped.items() if reasons},
    }
    (out / "READY").write_text(json.dumps(counts, indent=1) + "\n")


def contact_sheets(photos: list[Photo], out: Path, columns: int = 8, rows: int = 9) -> None:
    """Write PNG contact sheets of all photographs with their names, for review before training."""
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
    parser.add_argument("--cache", type=Path, help="folder for downloaded packages (default: OUT/packages)")
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.toml"))
    parser.add_argument("--sheets", action="store_true", help="also write contact sheets")
    args = parser.parse_args()
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("apt-get and dpkg-deb not found; run this on Debian 12 or in a Debian 12 container")
    cache = args.cache or args.out / "packages"
    cache.mkdir(parents=True, exist_ok=True)

    Image.MAX_IMAGE_PIXELS = 200_000_000
    photos, skipped = [], {}
    for package in read_packages(args.sources):
        found, skipped[package.name] = photos_of(package, cache)
        found = drop_duplicates(found, skipped[package.name])
        print(f"{package.name}: {len(found)} photographs, skipped {dict(skipped[package.name])}")
        photos += found
    skipped["across packages"] = Counter()
    photos = drop_duplicates(photos, skipped["across packages"])
    check_no_evaluation_images(photos)
    assign_names(photos)
    if args.sheets:
        contact_sheets(photos, args.out)
    pack(photos, args.out, skipped)
    print((args.out / "READY").read_text())


if __name__ == "__main__":
    main()
