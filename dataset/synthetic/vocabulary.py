"""Words for colors, shapes, positions and numbers in English and Chinese, with synonyms, and phrases made of them."""

from dataclasses import dataclass

from dataset.sample import Language
from dataset.synthetic.scene import Cell
from dataset.synthetic.scene_facts import Noun

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


_WORDS: dict[str | Cell, dict[Language, Word]] = {
    "red": {EN: Word("red", ("bright red",)), ZH: Word("红色", ("红",))},
    "green": {EN: Word("green", ("dark green",)), ZH: Word("绿色", ("绿",))},
    "blue": {EN: Word("blue", ("dark blue",)), ZH: Word("蓝色", ("蓝",))},
    "yellow": {EN: Word("yellow", ("gold",)), ZH: Word("黄色", ("黄",))},
    "purple": {EN: Word("purple", ("violet",)), ZH: Word("紫色", ("紫",))},
    "orange": {EN: Word("orange", ("dark orange",)), ZH: Word("橙色", ("橘色", "橙"))},
    "black": {EN: Word("black", ("dark",)), ZH: Word("黑色", ("黑",))},
    "white": {EN: Word("white", ("off white",)), ZH: Word("白色", ("白",))},
    "circle": {EN: Word("circle", ("disc", "round")), ZH: Word("圆形", ("圆", "圆圈"))},
    "square": {EN: Word("square", ("box",)), ZH: Word("正方形", ("方形", "方块"))},
    "triangle": {EN: Word("triangle"), ZH: Word("三角形", ("三角",))},
    "star": {EN: Word("star", ("5 pointed star",)), ZH: Word("星形", ("星星", "五角星"))},
    "cross": {EN: Word("cross", ("plus",)), ZH: Word("十字形", ("十字",))},
    "ring": {EN: Word("ring", ("hoop", "hollow circle")), ZH: Word("圆环", ("环形", "环"))},
    "sign": {EN: Word("sign", ("number sign", "board")), ZH: Word("标牌", ("数字牌", "牌子"))},
    (0, 0): {EN: Word("top left", ("upper left", "top left corner")), ZH: Word("左上角", ("左上", "左上方"))},
    (0, 1): {EN: Word("top", ("top middle", "top center")), ZH: Word("上方", ("上面", "顶部"))},
    (0, 2): {EN: Word("top right", ("upper right",)), ZH: Word("右上角", ("右上", "右上方"))},
    (1, 0): {EN: Word("left", ("left side", "middle left")), ZH: Word("左边", ("左侧", "左"))},
    (1, 1): {EN: Word("center", ("middle",)), ZH: Word("中间", ("中央", "中心"))},
    (1, 2): {EN: Word("right", ("right side", "middle right")), ZH: Word("右边", ("右侧", "右"))},
    (2, 0): {EN: Word("bottom left", ("lower left",)), ZH: Word("左下角", ("左下", "左下方"))},
    (2, 1): {EN: Word("bottom", ("bottom middle",)), ZH: Word("下方", ("下面", "底部"))},
    (2, 2): {EN: Word("bottom right", ("lower right", "bottom right corner")), ZH: Word("右下角", ("右下", "右下方"))},
}

DIGITS: dict[Language, tuple[str, ...]] = {
    EN: ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ZH: ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}
"""The digits from 0 to 9 read aloud."""


def word(value: str | Cell, language: Language) -> Word:
    """The word for a color, a shape or the position of a grid cell: red -> red, 红色; (0, 0) -> top left, 左上角."""
    return _WORDS[value][language]


def known_words(language: Language) -> list[str]:
    """Every word for a color, a shape, a position or a number, synonyms included."""
    return [text for words in _WORDS.values() for text in words[language].all] + list(DIGITS[language])


def amount(number: int, language: Language) -> str:
    """A number from 0 to 9 before a noun: two, 两个."""
    if language == EN:
        return DIGITS[EN][number]
    return ("两" if number == 2 else DIGITS[ZH][number]) + "个"


def noun_phrase(noun: Noun, language: Language, thing: str = "") -> str:
    """red circle, red thing, sign with the number 7; 红色的圆形, 写着7的标牌. `thing` replaces a missing shape."""
    shape = word(noun.shape, language).usual if noun.shape else thing
    if language == EN:
        text = " ".join(filter(None, (noun.color, shape)))
        return text if noun.digit is None else f"{text} with the number {noun.digit}"
    color = f"{word(noun.color, language).usual}的" if noun.color else ""
    digit = "" if noun.digit is None else f"写着{noun.digit}的"
    return digit + color + shape


def indefinite(noun: Noun, language: Language, thing: str = "") -> str:
    """The noun phrase with the indefinite article: a red circle, an orange circle; 红色的圆形."""
    text = noun_phrase(noun, language, thing)
    article = "" if language != EN else "an " if text[0] in "aeiou" else "a "
    return article + text


def kinds(noun: Noun, language: Language, thing: str = "") -> str:
    """The noun phrase in the plural, without a digit: red circles, crosses, red things; 红色的圆形."""
    text = noun_phrase(noun, language, thing)
    return text if language != EN else text + ("es" if text.endswith("ss") else "s")


def position_phrase(cell: Cell, language: Language) -> str:
    """at the top left, on the left, in the center; 左上角."""
    position = word(cell, language).usual
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
