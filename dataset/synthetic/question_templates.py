"""Question templates per kind of fact. The fields in braces are filled by question_phrasing."""

from dataset.sample import Language
from dataset.synthetic.scene_facts import Side

QUESTION_TEMPLATES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "count_all": (
            "How many {things} are there?",
            "How many {things} are in the picture?",
            "How many {things} do you see?",
            "In this picture, how many {things} are there?",
            "How many {things} does the picture show?",
            "What is the number of {things}?",
        ),
        "count_shape": (
            "How many {kinds} are there?",
            "How many {kinds} are in the picture?",
            "How many {kinds} can you see?",
            "In this image, how many {kinds} are there?",
            "What is the number of {kinds}?",
            "How many {kinds} does the image contain?",
        ),
        "color_of": (
            "What color is {a}?",
            "What is the color of {a}?",
            "Which color does {a} have?",
            "In this picture, what color is {a}?",
            "Tell me what color {a} is.",
            "{A} is what color?",
        ),
        "color_at": (
            "What color is the {thing} {at}?",
            "What is the color of the {thing} {at}?",
            "Which color does the {thing} {at} have?",
            "In this image, what color is the {thing} {at}?",
        ),
        "shape_of": (
            "What shape is {a}?",
            "What is the shape of {a}?",
            "Which shape does {a} have?",
            "In this picture, what shape is {a}?",
            "{A} has what shape?",
        ),
        "shape_at": (
            "What shape is {at}?",
            "Which shape is {at}?",
            "What is the shape of the {thing} {at}?",
        ),
        "which_is": (
            "Which {thing} is {color}?",
            "What {thing} is {color}?",
            "Which {thing} in the picture is {color}?",
            "What do you see that is {color}?",
        ),
        "name_at": (
            "What is {at}?",
            "What {thing} is {at}?",
            "What {thing} do you see {at}?",
            "What do you see {at}?",
            "What can be seen {at} of the picture?",
        ),
        "place_of": (
            "Where is {a}?",
            "Where in the picture is {a}?",
            "In which part of the picture is {a}?",
            "Where do you see {a}?",
            "Where can {a} be found?",
            "In what position is {a}?",
        ),
        "which_further": (
            "Which is {further}, {a} or {b}?",
            "Which one is {further}: {a} or {b}?",
            "Of {a} and {b}, which is {further}?",
            "Between {a} and {b}, which one is {further}?",
        ),
        "what_beside": (
            "What is {side} {a}?",
            "Which {thing} is {side} {a}?",
            "What do you see {side} {a}?",
            "What {thing} stands {side} {a}?",
        ),
        "read": (
            "What number is on {a}?",
            "Which number does {a} show?",
            "What digit is written on {a}?",
            "What number can you read on {a}?",
            "What does {a} say?",
            "Which digit do you see on {a}?",
        ),
        "read_at": (
            "What number is on the sign {at}?",
            "Which number does the sign {at} show?",
            "What digit is written on the sign {at}?",
            "What number can you read {at}?",
        ),
        "read_word": (
            "What word is on {a}?",
            "Which word does {a} show?",
            "What word is written on {a}?",
            "What word can you read on {a}?",
        ),
        "exists": (
            "Is there {one}?",
            "Is there {one} in the picture?",
            "Do you see {one}?",
            "Does the picture show {one}?",
            "Can you find {one} here?",
            "In this image, is there {one}?",
        ),
        "relation": (
            "Is {a} {side} {b}?",
            "Is it true that {a} is {side} {b}?",
            "Does {a} stand {side} {b}?",
            "In the picture, is {a} {side} {b}?",
        ),
        "is_color": ("Is {a} {color}?", "Is the color of {a} {color}?", "Does {a} look {color}?", "Would you call {a} {color}?"),
        "shows": (
            "Does {a} show the number {digit}?",
            "Is the number on {a} {digit}?",
            "Is there a {digit} on {a}?",
            "Does {a} say {digit}?",
        ),
        "more": (
            "Are there more {kinds} than {kinds_b}?",
            "Do you see more {kinds} than {kinds_b}?",
            "Does the picture show more {kinds} than {kinds_b}?",
        ),
    },
    "zh": {
        "count_all": (
            "图中有几个{thing}？",
            "图里一共有多少个{thing}？",
            "你能看到几个{thing}？",
            "这张图片里有多少个{thing}？",
            "{thing}的数量是多少？",
        ),
        "count_shape": (
            "图中有几个{kinds}？",
            "有多少个{kinds}？",
            "图里一共有几个{kinds}？",
            "你能看到多少个{kinds}？",
            "{kinds}的数量是多少？",
        ),
        "color_of": (
            "{a}是什么颜色？",
            "{a}是什么颜色的？",
            "图中{a}的颜色是什么？",
            "请问{a}是哪种颜色？",
            "什么颜色的是{a}？",
            "你觉得{a}是什么颜色？",
        ),
        "color_at": (
            "{at}的{thing}是什么颜色？",
            "图中{at}的{thing}是什么颜色的？",
            "{at}那个{thing}是哪种颜色？",
            "位于{at}的{thing}的颜色是什么？",
            "什么颜色的{thing}在{at}？",
        ),
        "shape_of": ("{a}是什么形状？", "{a}的形状是什么？", "图中{a}是什么形状的？", "请问{a}是哪种形状？", "什么形状的是{a}？"),
        "shape_at": (
            "{at}是什么形状？",
            "图中{at}的形状是什么？",
            "{at}的{thing}是什么形状的？",
            "在{at}能看到哪种形状？",
            "哪种形状在{at}？",
        ),
        "which_is": (
            "什么{thing}是{color}的？",
            "哪个{thing}是{color}的？",
            "图中{color}的是什么？",
            "图里什么是{color}的？",
            "{color}的是哪个{thing}？",
        ),
        "name_at": ("{at}是什么？", "图中{at}有什么？", "在{at}能看到什么？", "位于{at}的是什么{thing}？", "{at}有什么{thing}？"),
        "place_of": ("{a}在哪里？", "{a}在图中的什么位置？", "在哪里能看到{a}？", "请问{a}位于图片的哪个位置？", "{a}在什么地方？"),
        "which_further": (
            "{a}和{b}，哪个{further}？",
            "哪个{further}，{a}还是{b}？",
            "{a}与{b}相比，哪一个{further}？",
            "图中{a}和{b}，哪个{further}？",
            "请问哪个{further}，{a}还是{b}？",
        ),
        "what_beside": ("{a}的{side}是什么？", "{a}{side}有什么？", "在{a}的{side}能看到什么？", "什么{thing}在{a}的{side}？"),
        "read": ("{a}上的数字是几？", "{a}上写着什么数字？", "请问{a}显示的是数字几？", "你能读出{a}上的数字吗，是几？"),
        "read_at": ("{at}的标牌上是数字几？", "{at}的标牌上写着什么数字？", "图中{at}的数字是几？", "在{at}能读到什么数字？"),
        "read_word": ("{a}上写着什么单词？", "{a}上的单词是什么？", "请问{a}显示的是什么单词？", "你能读出{a}上的单词吗，是什么？"),
        "exists": ("图中有{one}吗？", "有没有{one}？", "你能看到{one}吗？", "这张图片里有{one}吗？", "图里是否有{one}？"),
        "relation": (
            "{a}在{b}的{side}吗？",
            "{a}是不是在{b}的{side}？",
            "图中{a}在{b}{side}，对吗？",
            "{a}是否位于{b}的{side}？",
            "能看出{a}在{b}的{side}吗？",
        ),
        "is_color": ("{a}是{color}的吗？", "{a}是不是{color}？", "图中{a}的颜色是{color}吗？", "你觉得{a}是{color}的吗？"),
        "shows": ("{a}上写着{digit}吗？", "{a}上的数字是不是{digit}？", "图中{a}上的数字是{digit}吗？", "你看到{a}上写着{digit}吗？"),
        "more": (
            "{kinds}比{kinds_b}多吗？",
            "{kinds}的数量是不是比{kinds_b}多？",
            "图中{kinds}是否多于{kinds_b}？",
            "能看出{kinds}比{kinds_b}多吗？",
        ),
    },
}

SHARED_TEMPLATES = {"count_color": "count_shape", "color_of_digit": "color_of"}
"""Kinds of facts that use the templates of another kind."""

THINGS = {"en": ("thing", "object", "item"), "zh": ("物体", "东西", "图形")}
"""Words for an object whose shape is not named."""

SIDES: dict[Language, dict[Side, tuple[str, ...]]] = {
    "en": {
        "left": ("to the left of", "left of"),
        "right": ("to the right of", "right of"),
        "above": ("above",),
        "below": ("below", "beneath"),
    },
    "zh": {"left": ("左边", "左侧"), "right": ("右边", "右侧"), "above": ("上面", "上方"), "below": ("下面", "下方")},
}
"""Phrases for the field `side`: one object relative to another."""

FURTHER: dict[Language, dict[Side, str]] = {
    "en": {"left": "further to the left", "right": "further to the right", "above": "above the other", "below": "below the other"},
    "zh": {"left": "更靠左边", "right": "更靠右边", "above": "更靠上面", "below": "更靠下面"},
}
"""Phrases for the field `further`: which of two objects lies further in a direction."""
