"""Blocked words: what a list finds in a prompt, and which files can't be used."""

import pytest

from kinema.errors import ContentRefused, InvalidRequest
from kinema.serving.blocked_words import MAX_BYTES, MAX_ENTRIES, read_blocked_words
from kinema.serving.submission import prepare
from kinema.settings import Settings

LIST = "# not for this server\n\nbomb\nhow to  steal\nStra\u00dfe\n\ud3ed\ud0c4\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "words.txt"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a bomb", "bomb"),
        ("A BOMB!", "bomb"),
        ("a bo\u00admb and a b\u200bomb", "bomb"),  # a soft hyphen, a space without width
        ("\uff42\uff4f\uff4d\uff42", "bomb"),  # full width
        ("bombastic music, a bombshell", None),
        ("how to\nsteal a car", "how to steal"),
        ("how to, steal", "how to steal"),
        ("how not to steal", None),
        ("eine STRASSE", "strasse"),
        ("\ud3ed\ud0c4\uc744 \ub4e0 \uc0ac\ub78c", "\ud3ed\ud0c4"),  # with a particle
        ("not for this server", None),
        ("", None),
    ],
)
def test_prompt_is_searched_for_whole_words_and_phrases(path, prompt, found):
    path.write_text(LIST, "utf-8-sig")
    assert read_blocked_words(path).find(prompt) == found


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"caf\xe9", "can't be read (it is not UTF-8)"),
        (b"# only a comment\n!!!\n", "has no words"),
        (b"word\n" * (MAX_ENTRIES + 1), "has 10,001 entries; the maximum is 10,000"),
        (b"w" * (MAX_BYTES + 1), "is larger than 1,000 KB"),
        (b"a " * 21, "has an entry of more than 20 words"),
    ],
)
def test_unusable_file_is_named_with_the_setting(path, content, problem):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest) as raised:
        read_blocked_words(path)
    assert str(raised.value).startswith(f"KINEMA_BLOCKED_WORDS: {path} {problem}")


@pytest.mark.parametrize("has_image", [False, True])
def test_request_with_a_blocked_word_is_refused_by_name(path, png, has_image):
    path.write_text(LIST, "utf-8")
    settings = Settings(model="pocket", device="cpu", blocked_words=path)
    with pytest.raises(ContentRefused, match="prompt contains 'bomb', which this server does not accept") as raised:
        prepare(settings, {"prompt": "a bomb"}, png if has_image else None)
    assert (raised.value.param, raised.value.code) == ("prompt", "content_refused")
    assert prepare(settings, {"prompt": "a boat", "negative_prompt": "bomb"}).title == "a boat"
