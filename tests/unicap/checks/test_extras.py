"""What models add before and after a caption is removed, and what a caption itself contains is kept."""

import pytest

from lumina_cli.core.unicap.checks.rules import check_caption
from lumina_cli.core.unicap.checks.unwrap import unwrap

CAPTION = "A red car on a hill in the evening."

# Answers that contain CAPTION; {} stands for it.
ANSWERS = [
    # roles
    "GPT4 Correct Assistant: {}",
    "GPT4 Correct User: Describe<|end_of_turn|>GPT4 Correct Assistant: {}<|end_of_turn|>",
    "Code Assistant: {}",
    "ASSISTANT： {}",
    "USER: hi\nASSISTANT: {}</s>USER: more",
    "ChatGPT: {}",
    # praise
    "Great question! {}",
    "That's a great question. {}",
    "What a beautiful photo! {}",
    "Thank you for sharing this image. {}",
    "Wow, what a stunning picture! {}",
    "Nice picture! {}",
    "Great question! Here is the caption: {}",
    "No problem! {}",
    # marks of the end
    "{}<end>",
    "{} <END>",
    "{}\n###",
    "{} ###",
    "{}\n### End",
    "{}</end>",
    "{}\n<stop>",
    "{}<|im_",
    "{}\nEND",
    "{}\n\n### Human: more?",
    # notes
    "{} (Note: the text is blurry.)",
    "{}\n\n(Note: I can't read it. It may be (partly) wrong.)",
    "{}\n\n*(Note that colours may vary.)*",
    "{}\n\nNote: The text is hard to read.",
    "{} [N.B.: blurred]",
    # hashtags
    "{} #sunset #beach",
    "{}\n#sunset",
    "{}\n\n#sunset #beach #Car2024",
    "{}\nHashtags: #a #b",
    # numbers
    "Image 1: {}",
    "**Image 1:** {}",
    "Figure 2. {}",
    "Image #1: {}",
    "1. {}",
    "1) {}",
    "(1) {}",
    "1. Caption: {}",
    # alternatives
    "Caption 1: {}\nCaption 2: A car.",
    "Caption 1: {} Caption 2: A car.",
    "**Option A:** {}\n\n**Option B:** A car.",
    "Here are two options:\n\n### Option 1\n{}\n\n### Option 2\nA car.",
    "{}\n\nAlternatively: A car.",
    "{}\nOr: A car",
    "Short: {}\nLong: A red car that stands on a green hill.",
    "Long caption: A red car that stands on a green hill.\nShort caption: {}",
    # lists of tags
    "{}\n\nTags: car, hill",
    "{}\n**Tags:**\n- car\n- hill",
    "{} Keywords: car, hill",
    "{}\nTags: #car #hill",
    # reasoning of Ollama
    "Thinking...\nHm, a car.\n...done thinking.\n\n{}",
    "Thinking...\r\nHm, a car.\r\n...done thinking.\r\n{}",
    "Thinking... Hm, a car. ...done thinking. {}",
]

# Answers with coordinates, and their captions.
LOCATED = [
    ("A red car(412,33),(500,60) on a hill(1,2),(300,400).", "A red car on a hill."),
    ("A red car [412, 33, 500, 60] on a hill.", "A red car on a hill."),
    ("A red car (412, 33), (500, 60), (1, 2), (3, 4) on a hill.", "A red car on a hill."),
    ("A red car {<25><30><50><70>} on a hill.", "A red car on a hill."),
]

# Answers that are not a short caption.
REJECTED = [
    ("markup", '{"objects": ["red car", "hill"]}'),
    ("markup", '["red car", "hill"]'),
    ("markup", '{"scene": "street", "objects": [{"label": "car"}]}'),
    ("markup", '{"items": [{"name": "a red car on a hill"}]}'),
    ("markup", '{"tags": "red car, hill"}'),
    ("markup", '```json\n{"objects": ["red car on a hill"]}\n```'),
    ("markup", "{'image_objects': ['red car']}"),
    ("boilerplate", "Here's a breakdown of the image:\n\nA red car."),
    ("boilerplate", "Here are the key elements of the photo: a car and a hill."),
    ("refusal", "Great question! However, I cannot see the image."),
    ("empty", "Thinking...\nHm, a red car"),
]

# Answers at the level "tags" that contain "car, hill".
TAGS = [
    "A red car on a hill.\nTags: car, hill",
    "car, hill\n#sunset #beach",
    "car\nhill",
    "Caption 1: car, hill\nCaption 2: car",
    '{"objects": ["car", "hill"]}',
    "car, hill (Note: two more are blurred)",
]

# Captions that contain such words.
LEGITIMATE = [
    "A T-shirt that reads #love #peace",
    "A mug with the text #blessed #coffee",
    "A map with the points (12,20),(30,40) marked",
    "A grid with points at (10,20),(30,40)",
    "A whiteboard with the list [120, 2, 3, 4] in blue",
    "A keyboard with an <end> key in red",
    "1. Mai demonstration in Berlin",
    "A price tag. The tags: red and blue",
    "A poster (note the torn corner) on a wall",
    "A page with the heading ### Hello in bold",
    "Great question mark on a wall",
    "Good question, a book cover in blue",
    "A record sleeve. Image 1: a cat on it. Image 2: a dog on it.",
    "Option 1 printed on a button",
    "Caption 1 in a textbook with a graph",
    "A music sheet. Note: C sharp",
    "Thinking... written on a wall in blue letters",
    "A note (in red ink) on a door",
    "What a Wonderful World record sleeve",
    "Nice picture frame on a wall",
    "Figure 1 of a skater on ice",
]


@pytest.mark.parametrize("text", ANSWERS)
def test_additions_are_removed(text):
    assert unwrap(text.replace("{}", CAPTION), "short") == CAPTION


@pytest.mark.parametrize(("text", "caption"), LOCATED)
def test_coordinates_are_removed(text, caption):
    assert unwrap(text, "short") == caption


@pytest.mark.parametrize(("code", "text"), REJECTED)
def test_answers_without_a_sentence_are_rejected(code, text):
    found = check_caption(unwrap(text, "short"), "short", "en")
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize("text", TAGS)
def test_tags_are_taken_out_of_additions(text):
    assert unwrap(text, "tags") == "car, hill"


@pytest.mark.parametrize("text", LEGITIMATE)
def test_captions_with_such_words_are_unchanged(text):
    assert unwrap(text, "medium") == text
    assert check_caption(text, "short", "en") is None
