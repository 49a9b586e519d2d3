"""Captions for scenes in many wordings, and the pocket text-to-image model's CLIP tokenizer.

    python -m training.t2i.words --out FOLDER  # write the tokenizer's files

Each known word is one token. Each letter of any other word becomes the unknown token. CLIP's byte-pair encoding has no
unknown words (it would split them into letters), so the known words are added tokens, which match whole words in any
case.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from training.t2i.scenes import Scene

MAX_TOKENS = 64
BEGIN, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unk|>"
PUNCTUATION = ".,;:!?'\"()[]{}-–—/&+*#|’"

# Wordings of each property.
HOUR_WORDS = {
    "dawn": (
        "at dawn", "at sunrise", "at daybreak", "in the early morning", "in the morning", "in morning light",
        "in the pale light of dawn", "early in the morning", "at first light", "as the sun rises",
    ),
    "day": (
        "by day", "at noon", "in daylight", "at midday", "during the day", "in the middle of the day",
        "in the afternoon", "on a bright day", "in broad daylight", "under a blue sky",
    ),
    "sunset": (
        "at sunset", "at dusk", "in the evening", "at golden hour", "in the evening light", "as the sun sets",
        "at twilight", "in a red sunset", "during sunset", "under an orange sky",
    ),
    "night": (
        "at night", "by night", "under the stars", "in the moonlight", "by moonlight", "at midnight", "in the dark",
        "under a starry sky", "under the moon", "in a starry night", "late at night",
    ),
}  # fmt: skip
WEATHER_WORDS = {
    "clear": ("in clear weather", "under a clear sky", "with a clear sky"),
    "cloudy": ("under clouds", "under a cloudy sky", "with clouds", "in cloudy weather", "on a cloudy day",
               "under an overcast sky", "with dramatic clouds"),
    "rain": ("in the rain", "in rain", "in rainy weather", "while it rains", "on a rainy day", "in heavy rain",
             "during a storm", "with rain falling"),
    "snow": ("in the snow", "in falling snow", "while it snows", "in a snowfall", "in snowy weather", "in winter",
             "with snow falling", "with snowflakes", "in a blizzard"),
    "fog": ("in fog", "in the fog", "in the mist", "in foggy weather", "in thick fog", "on a misty day", "in haze"),
}  # fmt: skip
# The ground as the subject of an image, and after prepositions such as "over" and "on".
GROUND_WORDS = {
    "mountains": ("snowy mountains", "a snowy mountain", "high mountains", "the mountains", "snow-capped mountains",
                  "a mountain range", "the alps", "snowy peaks", "a mountain", "mountain peaks", "a mountain view"),
    "hills": ("green hills", "rolling hills", "grassy hills", "the hills", "a green hill", "a hilly landscape",
              "the countryside", "green countryside"),
    "desert": ("the desert", "a sandy desert", "sand dunes", "desert dunes", "a desert landscape", "dunes",
               "the sahara"),
    "sea": ("the sea", "the ocean", "the open sea", "a blue sea", "the waves", "ocean waves", "a calm sea",
            "the water"),
    "beach": ("the beach", "a sandy beach", "a beach by the sea", "the shore", "the seaside", "the coast",
              "a tropical beach"),
    "forest": ("the forest", "a pine forest", "the woods", "a forest clearing", "fir trees", "a deep forest",
               "a forest path"),
    "meadow": ("a meadow", "a field of flowers", "a flower meadow", "a field", "the fields", "wild flowers",
               "a flowering meadow", "a grassy meadow", "a meadow full of flowers"),
    "lake": ("a lake", "a mountain lake", "a calm lake", "the lake", "a still lake", "a quiet lake", "lake water"),
    "city": ("the city", "a city", "a city skyline", "the skyline", "a big city", "a city street",
             "the streets of a city", "downtown", "skyscrapers", "tall buildings", "the town"),
    "aerial": ("a city from above", "a city seen from above", "the streets of a city from the air", "a city far below",
               "a city grid from above", "city blocks from the air"),
}  # fmt: skip
AERIAL_SUBJECTS = (
    "an aerial view of a city", "an aerial photograph of a city", "a bird's eye view of a city", "a city from above",
    "a drone shot of a city", "a drone photo of city streets", "a city seen from an airplane", "aerial view of a city",
)  # fmt: skip
THING_WORDS = {
    "balloon": ("hot-air balloon", "hot air balloon", "balloon"),
    "boat": ("boat", "sailing boat", "sailboat", "ship", "sailing ship", "yacht"),
    "rocket": ("rocket", "space rocket", "rocket ship", "spaceship", "spacecraft"),
    "house": ("house", "cottage", "little house", "home", "cabin", "farmhouse", "hut"),
    "tree": ("tree", "big tree", "lonely tree"),
    "lighthouse": ("lighthouse", "striped lighthouse"),
    "bird": ("bird", "flying bird", "bird in flight"),
    "car": ("car", "automobile", "old car", "small car"),
    "horse": ("horse", "pony", "wild horse", "running horse"),
    "astronaut": ("astronaut", "spaceman", "cosmonaut", "astronaut in a space suit", "astronaut waving"),
    "rider": ("astronaut riding a {}horse", "astronaut on a {}horse", "cosmonaut riding a {}horse",
              "astronaut on the back of a {}horse", "spaceman riding a {}pony"),
}  # fmt: skip
COLOUR_WORDS = {
    "red": ("red", "red", "red", "crimson", "scarlet", "bright red", "dark red"),
    "orange": ("orange", "orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "yellow", "golden", "bright yellow"),
    "green": ("green", "green", "green", "dark green", "emerald"),
    "blue": ("blue", "blue", "blue", "dark blue", "bright blue"),
    "purple": ("purple", "purple", "purple", "violet"),
    "pink": ("pink", "pink", "pink", "rose", "bright pink"),
    "white": ("white", "white", "white", "snow-white"),
    "black": ("black", "black", "black", "jet black", "dark"),
    "brown": ("brown", "brown", "brown", "dark brown", "chestnut"),
}  # fmt: skip
STYLE_WORDS = {
    "photograph": ("a photograph of", "a photo of", "a picture of", "a photograph showing", "a beautiful photo of"),
    "painting": ("a painting of", "an oil painting of", "a painted picture of", "an impressionist painting of",
                 "a watercolour of", "a watercolor of"),
    "drawing": ("a drawing of", "a pencil drawing of", "a sketch of", "a cartoon of", "an illustration of",
                "a children's drawing of"),
}  # fmt: skip
STYLE_TAILS = {
    "photograph": ("photo", "photograph", "photography", "photorealistic", "realistic", "long exposure", "instagram",
                   "instagram contest", "sharp focus", "35mm photo", "dslr", "national geographic"),
    "painting": ("painting", "oil painting", "oil on canvas", "brush strokes", "impressionism", "in the style of monet",
                 "painted"),
    "drawing": ("drawing", "pencil drawing", "illustration", "cartoon", "coloured pencil", "comic", "flat colours",
                "sketch"),
}  # fmt: skip
QUALITIES = (
    "beautiful", "highly detailed", "4k", "8k", "hd", "masterpiece", "best quality", "cinematic", "award winning",
    "stunning", "peaceful", "colourful", "colorful", "dramatic lighting", "trending on artstation", "wallpaper",
    "ultra detailed", "high resolution", "atmospheric", "professional", "wide angle", "scenic", "landscape", "vivid",
)  # fmt: skip
ACROSS_WORDS = {
    "left": ("on the left", "on the left side", "at the left", "to the left"),
    "middle": ("in the middle", "in the center", "in the centre", "centered"),
    "right": ("on the right", "on the right side", "at the right", "to the right"),
}
LARGE_WORDS = ("big", "large", "huge", "giant")
SMALL_WORDS = ("small", "little", "tiny", "distant")
HIGH_WORDS = ("high in the sky", "high up", "high above the ground", "far up in the sky")
LOW_WORDS = ("low over the ground", "close to the ground", "just above the ground")
NUMBERS = {2: ("two", "two", "a pair of", "2"), 3: ("three", "three", "several", "3", "a group of", "some")}
OVER = ("over", "above", "flying over", "floating over", "in the sky over", "high above", "in the air above")
# What a thing does, before the preposition of the ground; flying things use OVER.
DOING = {
    "boat": ("", "sailing", "floating"),
    "house": ("", "", "standing"),
    "lighthouse": ("", "", "standing"),
    "car": ("", "driving", "parked"),
    "horse": ("", "running", "standing", "galloping", "walking"),
    "tree": ("", "standing", "growing"),
    "astronaut": ("", "standing", "walking", "waving"),
    "rider": ("",),
}
AT_GROUND = {
    "mountains": ("in", "in front of", "below"),
    "hills": ("on", "among"),
    "desert": ("in", "in"),
    "sea": ("on", "by"),
    "beach": ("on", "at"),
    "forest": ("in", "in front of"),
    "meadow": ("in", "in the middle of"),
    "lake": ("on", "by", "at"),
    "city": ("in", "in front of"),
}
# Words of the lists above that name nothing visible on their own; they cause no warning.
ALONGSIDE = """
    a an the and or of in on at by with without from to into onto over under above below behind before beside between
    near next along across through around against among inside outside upon off up down out for as is are be it it's
    that this these those there here which who when where while then its his her their our my your i you we he she they
    them far seen just close front back side way view shot scene image picture showing full group pair eye air high low
    during late early first light bright broad golden orange red blue green pale dark heavy thick falling rises sets
    open path range rolling calm deep quiet still big little small tall tropical wild lonely flight flying suit space
    weather jet flat hot striped capped grid blocks far ground drone airplane photo photograph sharp running riding
    waving hour middle
""".split()  # noqa: SIM905  # easier to read and extend
# Words of the lists above that appear in captions at random, so that no image shows them.
UNSEEN = {"old", "dramatic"}
# Words of ordinary sentences that the captions do not need.
MORE_WORDS = """
    a an the and or of in on at by with without from to into onto over under above below behind before beside between
    near next along across through around against among inside outside upon off up down out for as is are was be being
    it its it's that this these those there here which who where when while then his her their our my your i you we he
    she they them not no very really so such more most much many few some any all both each every other another one two
    three four five six seven eight nine ten first second single several lots lot full

    image picture view scene shot render rendering art artwork artistic style styled digital concept print poster
    postcard panorama panoramic portrait closeup close macro background foreground horizon sky skies cloud clouds cloudy
    sun sunny sunlight sunshine sunbeam sunbeams sunlit moon moonlit full crescent star stars starry starlight milky way
    light lights lit glow glowing shining shiny bright dark darkness shadow shadows reflection reflections reflected
    reflecting mirrored mirror warm cold cool hot soft hard pale deep calm quiet still serene peaceful lonely alone
    gentle wild stormy windy wind breeze rainy raining rain raindrops snow snowing snowy snowflakes ice icy frozen frost
    fog foggy mist misty haze hazy storm thunderstorm overcast weather winter spring summer autumn fall season time
    hour day days daytime daylight night nights nighttime evening morning noon midday afternoon midnight dawn dusk
    twilight sunrise sunset sunsets golden blue

    mountain mountains mountainous peak peaks summit alps alpine himalaya range valley cliff cliffs rock rocks rocky
    slope glacier hill hills hilly hillside grass grassy lawn pasture countryside rural land landscape nature natural
    outdoors plain plains prairie desert dune dunes sand sandy sahara sea seas ocean oceans wave waves water waters
    surf foam coast coastal coastline shore shoreline beach beaches seaside island bay harbour harbor horizon forest
    forests wood woods woodland pine pines fir firs spruce jungle clearing path trail meadow meadows field fields farm
    flower flowers flowering floral poppy poppies daisies daisy wildflowers bloom blooming blossom blossoms garden park
    lake lakes pond river shore city cities town urban skyline skyscraper skyscrapers building buildings tower towers
    street streets road roads highway avenue downtown metropolis traffic window windows lamp lamps neon aerial overhead
    drone bird's eye birdseye airplane top metropolitan york tokyo paris london chicago seoul

    balloon balloons hot-air hotair boat boats sail sails sailing sailed sailboat sailboats ship ships yacht yachts
    rocket rockets spaceship spaceships spacecraft shuttle launch launching launched launches takeoff space house houses
    cottage cottages home homes cabin cabins hut huts farmhouse tree trees oak maple lighthouse lighthouses beacon bird
    birds seagull seagulls gull gulls dove pigeon parrot eagle crow raven car cars automobile vehicle vehicles taxi
    truck horse horses pony ponies stallion mare animal animals astronaut astronauts cosmonaut cosmonauts spaceman
    spacemen suit suits spacesuit helmet rider riders ride rides riding rode man person people someone

    fly flies flying flew soar soars soaring float floats floating drift drifts drifting hover hovering rise rises
    rising rose set sets setting go goes going drive drives driving drove park parked sail stand stands standing stood
    walk walks walking run runs running gallop gallops galloping trot trotting jump jumping wave waves waving sit sits
    sitting lie lying rest resting grow grows growing hang hanging land landing landed cross crossing pass passing
    explore exploring travel travelling traveling wander wandering overlooking facing looking seen surrounded covered
    topped capped lonely left right middle center centre centered side corner front back high low higher far away
    distant distance big bigger large huge giant great tall small little tiny long short wide old new young modern
    ancient vintage striped pretty lovely beautiful gorgeous amazing stunning magnificent majestic epic magical mystical
    dreamy romantic cozy cosy charming nice fantastic wonderful perfect simple minimal minimalist colour color colours
    colors coloured colored colourful colorful red reddish crimson scarlet orange yellow gold golden green emerald blue
    bluish purple violet lilac pink pinkish rose white snow-white whitish black jet brown chestnut grey gray silver
    turquoise teal

    photo photos photograph photographs photography photographic photorealistic realistic realism hyperrealistic camera
    lens canon nikon dslr 35mm 50mm bokeh exposure focus sharp blurry instagram contest award winning winner national
    geographic cinematic film movie still dramatic lighting atmospheric ambient volumetric god rays hdr uhd 4k 8k hd 2k
    resolution quality best masterpiece detail details detailed highly ultra intricate elegant professional artstation
    trending unreal engine octane wallpaper vivid vibrant pastel contrast saturated painting paintings painted painter
    oil canvas watercolour watercolor acrylic gouache brush brushstrokes strokes stroke impressionist impressionism
    impressionistic monet gogh van turner drawing drawings drawn draw pencil pencils crayon ink sketch sketched cartoon
    comic illustration illustrated illustrator children's child's book storybook flat vector anime ghibli
""".split()  # noqa: SIM905  # easier to read and extend


def caption(scene: Scene, rng: random.Random, *, full: bool = False) -> str:
    """Return a random caption of a scene; unless `full`, it omits some properties at random."""
    is_mentioned = lambda probability: full or rng.random() < probability  # noqa: E731
    clauses = []
    if is_mentioned(0.85):
        clauses.append(rng.choice(HOUR_WORDS[scene.hour]))
    if (scene.weather != "clear" and is_mentioned(0.9)) or (scene.weather == "clear" and rng.random() < 0.08):
        clauses.append(rng.choice(WEATHER_WORDS[scene.weather]))
    rng.shuffle(clauses)
    main = _subject(scene, rng, full=full)
    style = rng.random()
    if clauses and style > 0.85:
        text = ", ".join((clauses[0], main, *clauses[1:]))
    else:
        text = (", " if rng.random() < 0.12 else " ").join((main, *clauses))
    if style < 0.35 or (scene.style != "photograph" and style < 0.6):
        text = f"{rng.choice(STYLE_WORDS[scene.style])} {text}"
    elif style > 0.6 and (scene.style != "photograph" or rng.random() < 0.6):
        text = f"{text}, {rng.choice(STYLE_TAILS[scene.style])}"
    for _ in range(rng.choices((0, 1, 2, 3), (6, 2, 1, 1))[0]):
        text = f"{text}, {rng.choice(QUALITIES)}"
    return text


def bare_caption(scene: Scene, colour: str | None = None) -> str:
    """Return the shortest full caption; `colour` replaces the scene's colour."""
    ground, hour = GROUND_WORDS[scene.ground][0], HOUR_WORDS[scene.hour][0]
    weather = "" if scene.weather == "clear" else f" {WEATHER_WORDS[scene.weather][0]}"
    if scene.thing is None:
        return f"{AERIAL_SUBJECTS[0] if scene.ground == 'aerial' else ground} {hour}{weather}"
    noun = _noun(THING_WORDS[scene.thing][0], COLOUR_WORDS[colour or scene.colour or ""][0])
    return f"{_article(noun)} {noun} {_where(scene, None)} {ground} {hour}{weather}"


def _subject(scene: Scene, rng: random.Random, *, full: bool) -> str:
    """Return the thing and its position, or only the ground."""
    if scene.thing is None:
        if scene.ground == "aerial" and rng.random() < 0.7:
            return rng.choice(AERIAL_SUBJECTS)
        return rng.choice(GROUND_WORDS[scene.ground])
    colour = rng.choice(COLOUR_WORDS[scene.colour]) if full or rng.random() < 0.85 else ""
    words = []
    if rng.random() < 0.2:
        words.append(rng.choice(LARGE_WORDS if scene.large else SMALL_WORDS))
    name = rng.choice(THING_WORDS[scene.thing])
    if scene.thing != "rider" and colour and scene.count == 1 and rng.random() < 0.06:
        noun = f"{_article(name)} {name} in {colour}" if scene.thing == "astronaut" else f"a {name} that is {colour}"
    else:
        noun = " ".join((*words, _noun(name, colour)))
        if scene.count > 1:
            noun = f"{rng.choice(NUMBERS[scene.count])} {_plural(noun)}"
        elif rng.random() < 0.92:
            noun = f"{_article(noun)} {noun}"
    where = ""
    if full or rng.random() < 0.92:
        where = f" {_where(scene, rng)} {rng.choice(GROUND_WORDS[scene.ground])}"
    if rng.random() < 0.2:
        where += f" {rng.choice(ACROSS_WORDS[scene.across])}"
    if scene.thing in ("balloon", "rocket", "bird") and rng.random() < 0.2:
        where += f" {rng.choice(HIGH_WORDS if scene.high else LOW_WORDS)}"
    return noun + where


def _noun(name: str, colour: str) -> str:
    """Return a thing's name with its colour; a rider's colour is that of the horse."""
    if "{}" not in name:
        return f"{colour} {name}".strip()
    noun = name.format(f"{colour} " if colour else "")
    return noun.replace(" a ", f" {_article(colour)} ") if colour else noun


def _where(scene: Scene, rng: random.Random | None) -> str:
    """Return the words between thing and ground."""
    if scene.thing not in DOING:
        return rng.choice(OVER) if rng else OVER[0]
    doing, at = DOING[scene.thing], AT_GROUND[scene.ground]
    if (scene.thing, scene.ground) == ("boat", "beach"):
        at = ("off", "near", "by")
    elif (scene.thing, scene.ground) in (("house", "lake"), ("lighthouse", "sea")):
        at = ("by", "near", "at")
    return f"{rng.choice(doing)} {rng.choice(at)}".strip() if rng else at[0]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    """Return a noun phrase with the word for the thing in the plural."""
    for one, many in (
        ("balloon", "balloons"), ("boat", "boats"), ("yacht", "yachts"), ("house", "houses"), ("cottage", "cottages"),
        ("home", "homes"), ("cabin", "cabins"), ("hut", "huts"), ("tree", "trees"), ("bird", "birds"), ("car", "cars"),
        ("automobile", "automobiles"), ("horse", "horses"), ("pony", "ponies"), ("astronaut", "astronauts"),
        ("spaceman", "spacemen"), ("cosmonaut", "cosmonauts"), ("ship", "ships"),
    ):  # fmt: skip
        parts = noun.split()
        for i, part in enumerate(parts):
            if part in (one, f"farm{one}", f"sail{one}"):
                parts[i] = part[: -len(one)] + many
                return " ".join(parts)
    return noun


def split_words(text: str) -> list[str]:
    """Return a text's words and punctuation marks in lower case, split as by the tokenizer."""
    out, word = [], ""
    for sign in text.lower().replace("’", "'"):
        if sign.isalnum() or (sign == "'" and word):
            word += sign
            continue
        if word:
            out.append(word)
        word = ""
        if not sign.isspace():
            out.append(sign)
    return [*out, word] if word else out


def token_ids(text: str, tokens: dict[str, int]) -> list[int]:
    """Return the token ids of a caption with known words only, as the tokenizer would."""
    inner = [tokens[w if w[0].isalnum() else f"{w}</w>"] for w in split_words(text)]
    return [tokens[BEGIN], *inner, tokens[END]]


def vocabulary() -> dict[str, int]:
    """Return the id of every token: begin, end and unknown, then punctuation, then words in alphabetical order."""
    phrases = list(MORE_WORDS)
    for table in (HOUR_WORDS, WEATHER_WORDS, GROUND_WORDS, THING_WORDS, COLOUR_WORDS, STYLE_WORDS, STYLE_TAILS,
                  ACROSS_WORDS, DOING, AT_GROUND, NUMBERS):  # fmt: skip
        phrases += [phrase.replace("{}", "") for many in table.values() for phrase in many]
    phrases += [*AERIAL_SUBJECTS, *QUALITIES, *LARGE_WORDS, *SMALL_WORDS, *HIGH_WORDS, *LOW_WORDS, *OVER]
    words = {w for phrase in phrases for w in split_words(phrase) if w[0].isalnum()}
    words |= {_plural(w) for w in words}
    # As in CLIP, a mark has two forms: within a run of marks and at its end.
    marks = [form for mark in PUNCTUATION for form in _forms(mark)]
    return {token: i for i, token in enumerate([BEGIN, END, UNKNOWN, *dict.fromkeys(marks), *sorted(words)])}


def effective_words() -> dict[str, list[str]]:
    """Return the words that affect the image and so cause no warning, in two lists.

    "scene" has the words for ground, hour, weather and thing; "other" those for colour, number, position, size and
    style, and function words. All other words have no effect.
    """
    scenes = (*HOUR_WORDS.values(), *WEATHER_WORDS.values(), *GROUND_WORDS.values(), *THING_WORDS.values())
    others = (*COLOUR_WORDS.values(), *STYLE_WORDS.values(), *STYLE_TAILS.values(), *ACROSS_WORDS.values(),
              *DOING.values(), *AT_GROUND.values(), *NUMBERS.values(), LARGE_WORDS, SMALL_WORDS, HIGH_WORDS, LOW_WORDS,
              OVER)  # fmt: skip

    def words(tables: Iterable[tuple[str, ...]]) -> set[str]:
        phrases = (phrase.replace("{}", "") for table in tables for phrase in table)
        return {word.removesuffix("'s") for phrase in phrases for word in split_words(phrase) if word[0].isalnum()}

    known = words((*scenes, AERIAL_SUBJECTS)) - set(ALONGSIDE) - UNSEEN
    scene = known | {_plural(word) for word in known}
    other = (words(others) | set(ALONGSIDE)) - {"beautiful"} - UNSEEN - scene
    return {"scene": sorted(scene), "other": sorted(other)}


def _forms(mark: str) -> list[str]:
    """Return a mark's byte-level BPE tokens: one per byte, and the last byte again with the end-of-word suffix."""
    signs = [_byte_sign(b) for b in mark.encode()]
    return [*signs, f"{signs[-1]}</w>"]


def _byte_sign(byte: int) -> str:
    """Return the printable character that represents a byte in byte-level BPE (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))


def write_tokenizer(folder: Path) -> None:
    """Write the files of a `CLIPTokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary()
    special = (BEGIN, END, UNKNOWN)
    added = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": token not in special,
            "rstrip": False,
            "single_word": token not in special,
            "special": token in special,
        }
        for token, number in tokens.items()
        if token in special or token[0].isalnum()
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": BEGIN,
        "do_lower_case": True,
        "eos_token": END,
        "model_max_length": MAX_TOKENS,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": UNKNOWN,
    }
    names = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    write = lambda name, value: (folder / name).write_text(  # noqa: E731
        json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    write("vocab.json", tokens)
    write("tokenizer_config.json", config)
    write("special_tokens_map.json", names)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def write_effective_words(folder: Path) -> None:
    """Write `words.json`, which warnings about a prompt are based on."""
    text = json.dumps(effective_words(), indent=1, ensure_ascii=False)
    (folder / "words.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_tokenizer(args.out)
    print(f"{len(vocabulary())} tokens")


if __name__ == "__main__":
    main()
