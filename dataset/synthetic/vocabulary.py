"""Words for colors, shapes, positions and numbers in English and Chinese, with synonyms."""

from dataclasses import dataclass

from dataset.sample import Language
from dataset.synthetic.scene import Thing

EN: Language = "en"
ZH: Language = "zh"


@dataclass(frozen=True, slots=True)
class Word:
    """The usual word and its synonyms."""

    usual: str
    synonyms: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The usual word, then the synonyms."""
        return (self.usual, *self.synonyms)


_COLORS = {
    EN: {
        "red": Word("red", ("bright red",)),
        "green": Word("green", ("dark green",)),
        "blue": Word("blue", ("dark blue",)),
        "yellow": Word("yellow", ("gold",)),
        "purple": Word("purple", ("violet",)),
        "orange": Word("orange", ("dark orange",)),
        "black": Word("black", ("dark",)),
        "white": Word("white", ("off white",)),
    },
    ZH: {
        "red": Word("红色", ("红",)),
        "green": Word("绿色", ("绿",)),
        "blue": Word("蓝色", ("蓝",)),
        "yellow": Word("黄色", ("黄",)),
        "purple": Word("紫色", ("紫",)),
        "orange": Word("橙色", ("橘色", "橙")),
        "black": Word("黑色", ("黑",)),
        "white": Word("白色", ("白",)),
    },
}

_SHAPES = {
    EN: {
        "circle": Word("circle", ("disc", "round")),
        "square": Word("square", ("box",)),
        "triangle": Word("triangle"),
        "star": Word("star", ("5 pointed star",)),
        "cross": Word("cross", ("plus",)),
        "ring": Word("ring", ("hoop", "hollow circle")),
        "sign": Word("sign", ("number sign", "board")),
    },
    ZH: {
        "circle": Word("圆形", ("圆", "圆圈")),
        "square": Word("正方形", ("方形", "方块")),
        "triangle": Word("三角形", ("三角",)),
        "star": Word("星形", ("星星", "五角星")),
        "cross": Word("十字形", ("十字",)),
        "ring": Word("圆环", ("环形", "环")),
        "sign": Word("标牌", ("数字牌", "牌子")),
    },
}

_POSITIONS = {
    EN: (
        (
            Word("top left", ("upper left", "top left corner")),
            Word("top", ("top middle", "top center")),
            Word("top right", ("upper right",)),
        ),
        (Word("left", ("left side", "middle left")), Word("center", ("middle",)), Word("right", ("right side", "middle right"))),
        (
            Word("bottom left", ("lower left",)),
            Word("bottom", ("bottom middle",)),
            Word("bottom right", ("lower right", "bottom right corner")),
        ),
    ),
    ZH: (
        (Word("左上角", ("左上", "左上方")), Word("上方", ("上面", "顶部")), Word("右上角", ("右上", "右上方"))),
        (Word("左边", ("左侧", "左")), Word("中间", ("中央", "中心")), Word("右边", ("右侧", "右"))),
        (Word("左下角", ("左下", "左下方")), Word("下方", ("下面", "底部")), Word("右下角", ("右下", "右下方"))),
    ),
}

_NUMBERS = {
    EN: ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ZH: ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}

Cell = tuple[int, int]
"""Row and column of the grid."""


def color_word(color: str, language: Language) -> Word:
    """red -> red, 红色."""
    return _COLORS[language][color]


def shape_word(shape: str, language: Language) -> Word:
    """circle -> circle, 圆形."""
    return _SHAPES[language][shape]


def position_word(cell: Cell, language: Language) -> Word:
    """(0, 0) -> top left, 左上角."""
    return _POSITIONS[language][cell[0]][cell[1]]


def known_words(language: Language) -> list[str]:
    """Every word for a color, a shape, a position or a number, synonyms included."""
    words = [*_COLORS[language].values(), *_SHAPES[language].values(), *(word for row in _POSITIONS[language] for word in row)]
    return [text for word in words for text in word.all] + list(_NUMBERS[language])


def number_word(number: int, language: Language) -> str:
    """2 -> two, 二 (the digit read aloud)."""
    return _NUMBERS[language][number]


def amount(number: int, language: Language) -> str:
    """A number from 0 to 9 before a noun: two, 两个."""
    if language == EN:
        return number_word(number, EN)
    return ("两" if number == 2 else number_word(number, ZH)) + "个"


def plural(shape: str) -> str:
    """Plural of an English noun: crosses, circles."""
    return shape + ("es" if shape.endswith("ss") else "s")


def with_article(noun: str) -> str:
    """An English noun with its indefinite article: an orange circle, a red circle."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def name(thing: Thing, language: Language) -> str:
    """red circle, 红色的圆形; without the digit of a sign."""
    return colored(thing.color, thing.shape, language)


def colored(color: str, shape: str, language: Language) -> str:
    """red circle, 红色的圆形."""
    color_text, shape_text = color_word(color, language).usual, shape_word(shape, language).usual
    return f"{color_text} {shape_text}" if language == EN else f"{color_text}的{shape_text}"


def position_phrase(cell: Cell, language: Language) -> str:
    """at the top left, on the left, in the center; 左上角."""
    position = position_word(cell, language).usual
    if language == ZH:
        return position
    preposition = "in" if cell == (1, 1) else "on" if cell[0] == 1 else "at"
    return f"{preposition} the {position}"


def join_words(parts: list[str], language: Language) -> str:
    """a, b and c; a、b和c."""
    if len(parts) == 1:
        return parts[0]
    separator, last = (", ", " and ") if language == EN else ("、", "和")
    return separator.join(parts[:-1]) + last + parts[-1]


def capitalize_first(text: str) -> str:
    """The same text with a capital first letter."""
    return text[0].upper() + text[1:]
