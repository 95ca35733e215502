"""Text from outside in pictures, such as the names of files: shown letter by letter, in fonts that have the letters."""

import dataclasses
import functools
import textwrap
import unicodedata

from matplotlib import font_manager

INVISIBLE = ("Cf", "Cc")  # categories of Unicode: letters without a shape, such as joiners
NOT_DRAWN = ("Last Resort", "Noto Color Emoji")  # families with boxes for letters, and with colours


@dataclasses.dataclass(frozen=True)
class Lettering:
    """How the texts of a picture are shown. `lettering_for` makes one."""

    families: tuple[str, ...]  # of fonts beside the default one, which has most letters
    lacking: frozenset[str]  # letters that no font has: shown as escapes, such as \\u540d

    @property
    def font(self) -> dict:
        """Arguments of matplotlib's texts: literally, never as a formula between dollar signs."""
        default = font_manager.FontProperties().get_family()
        return {"parse_math": False, **({"fontfamily": [*default, *self.families]} if self.families else {})}

    def shown(self, text: str) -> str:
        """Return a text as it is shown."""
        return "".join(
            ascii(letter)[1:-1] if letter in self.lacking else letter for letter in text if not _is_invisible(letter)
        )

    def wrapped(self, text: str, characters: int) -> str:
        """Return a text as it is shown, in lines of so many characters, of which wide ones such as Chinese count twice."""
        text = self.shown(text)
        columns = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
        return textwrap.fill(text, max(1, characters * len(text) // max(1, columns)))


def lettering_for(texts: list[str]) -> Lettering:
    """Choose fonts for the texts of a picture: the default one, and the first others on this machine that have the rest."""
    lacking = frozenset(letter for letter in "".join(texts) if not letter.isspace() and not _is_invisible(letter))
    lacking -= _letters_of(font_manager.findfont(font_manager.FontProperties()))
    families = []
    if lacking:
        for family, path in _other_fonts():
            if found := lacking & _letters_of(path):
                families.append(family)
                lacking -= found
            if not lacking:
                break
    return Lettering(tuple(families), lacking)


def _is_invisible(letter: str) -> bool:
    is_selector = "\ufe00" <= letter <= "\ufe0f"  # of the form of the letter before
    return is_selector or (not letter.isspace() and unicodedata.category(letter) in INVISIBLE)


def _other_fonts() -> list[tuple[str, str]]:
    """Return family and path of the regular fonts on this machine, sorted by family."""
    fonts = {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal") and not font.name.startswith(NOT_DRAWN)
    }
    return sorted(fonts.items())


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    """Return the letters that a font has; none if it cannot be read or scaled."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
