"""What models wrap around a caption is removed; answers that are not captions are rejected; all else passes."""

import json
import time

import pytest
from local_endpoint import Endpoint, asked, question, said

from lumina_cli.core.nano.captions import all_captions
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.unicap.checks.chat_tokens import remove_reasoning
from lumina_cli.core.unicap.checks.rules import check_caption
from lumina_cli.core.unicap.checks.unwrap import unwrap
from lumina_cli.core.unicap.engines.answer_text import message_text

CAPTION = "A red car on a hill in the evening"

# Answers that contain CAPTION.
WRAPPED = [
    '<think>The user wants a caption.</think>\nA red car on a hill in the evening',
    '<think></think>\n\nA red car on a hill in the evening',
    'The user wants a caption, so I look.</think>A red car on a hill in the evening',
    '<think>a <think>b</think> c</think>A red car on a hill in the evening',
    '<thinking>hm</thinking>\n<answer>A red car on a hill in the evening</answer>',
    '[THINK]hm[/THINK]A red car on a hill in the evening</s>',
    '◁think▷hm◁/think▷A red car on a hill in the evening',
    '<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>A red car on a hill in the evening<|end_of_solution|>',
    '<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>A red car on a hill in the evening<|END_RESPONSE|>',
    '<seed:think>hm</seed:think>A red car on a hill in the evening',
    '<unused94>thought\nhm<unused95>A red car on a hill in the evening',
    '<|channel|>analysis<|message|>We need a caption.<|end|><|start|>assistant<|channel|>final<|message|>A red car on a hill in the evening<|return|>',
    'analysisWe need a caption.assistantfinalA red car on a hill in the evening',
    '<think>The image shows a "red" car.\n\n</think>\n\n<|begin_of_box|>A red car on a hill in the evening<|end_of_box|>',
    '<SUMMARY>I will caption.</SUMMARY>\n<CAPTION>A red car on a hill in the evening</CAPTION>\n<REASONING>hm</REASONING>',
    'A red car on a hill in the evening<|im_end|>',
    'A red car on a hill in the evening<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>',
    '<|im_start|>assistant\nA red car on a hill in the evening<|im_end|>',
    '<|im_start|>user\nDescribe.<|im_end|>\n<|im_start|>assistant\nA red car on a hill in the evening',
    '<|start_header_id|>assistant<|end_header_id|>\n\nA red car on a hill in the evening<|eot_id|>',
    '[INST] Describe this. [/INST] A red car on a hill in the evening</s>',
    '<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nDescribe. [/INST] A red car on a hill in the evening </s>',
    '<start_of_turn>model\nA red car on a hill in the evening<end_of_turn>',
    'A red car on a hill in the evening<end_of_turn>\n<eos>',
    '<|assistant|>\nA red car on a hill in the evening<|end|>',
    '<|user|>\nDescribe<|end|>\n<|assistant|>\nA red car on a hill in the evening<|end|><|endoftext|>',
    '<｜Assistant｜>A red car on a hill in the evening<｜end▁of▁sentence｜>',
    '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A red car on a hill in the evening<|END_OF_TURN_TOKEN|>',
    '[gMASK]<sop><|assistant|>\nA red car on a hill in the evening<|user|>',
    'A red car on a hill in the evening<end_of_utterance>',
    'A red car on a hill in the evening<|eot|>',
    '<|header_start|>assistant<|header_end|>\n\nA red car on a hill in the evening<|eot|>',
    '<|start_of_role|>assistant<|end_of_role|>A red car on a hill in the evening<|end_of_text|>',
    '<|im_assistant|>assistant<|im_middle|>A red car on a hill in the evening<|im_end|>',
    'USER: <image>\nDescribe this image. ASSISTANT: A red car on a hill in the evening</s>',
    'Human: describe\nAssistant: A red car on a hill in the evening\nHuman: thanks',
    'user\nDescribe\nassistant\nA red car on a hill in the evening',
    'model\nA red car on a hill in the evening',
    'Assistant: A red car on a hill in the evening',
    '### Response:\nA red car on a hill in the evening',
    'A red car on a hill in the evening[UNUSED_TOKEN_145]',
    'A red car on a hill in the evening<eoa>',
    '<|endoftext|>A red car on a hill in the evening',
    '```\nA red car on a hill in the evening\n```',
    '```text\nA red car on a hill in the evening\n```',
    '```json\n{"caption": "A red car on a hill in the evening"}\n```',
    'Here is the caption:\n```\nA red car on a hill in the evening\n```\nLet me know if you need anything else!',
    '`A red car on a hill in the evening`',
    '# Caption\nA red car on a hill in the evening',
    '## Caption:\n\nA red car on a hill in the evening',
    '**Caption:** A red car on a hill in the evening',
    '**Caption**\n\nA red car on a hill in the evening',
    '# A red car on a hill in the evening',
    '- A red car on a hill in the evening',
    '> A red car on a hill in the evening',
    'A **red car** on a hill in the evening',
    '**A red car on a hill in the evening**',
    '---\nA red car on a hill in the evening\n---',
    '{"caption": "A red car on a hill in the evening"}',
    "{'description': 'A red car on a hill in the evening'}",
    '{"en": {"short": "A red car on a hill in the evening"}}',
    '[{"caption": "A red car on a hill in the evening"}]',
    '["A red car on a hill in the evening"]',
    '"A red car on a hill in the evening"',
    '{"thought": "hm", "answer": "A red car on a hill in the evening"}',
    '{"caption": "A red car on a hill in the evening", "confidence": 0.9}',
    'Sure! {"caption": "A red car on a hill in the evening"}',
    '{"caption": "A red car on a hill in the evening", "tags": ["a", "b',
    '<p>A red car on a hill in the evening</p>',
    'A red car<loc_1><loc_2><loc_3><loc_4> on a hill<loc_5><loc_6> in the evening',
    '<ref>A red car</ref><box>(12,34),(567,890)</box> on a hill in the evening',
    '<|object_ref_start|>A red car<|object_ref_end|><|box_start|>(12,34),(567,890)<|box_end|> on a hill in the evening',
    '<grounding><phrase>A red car</phrase><object><patch_index_0044><patch_index_0863></object> on a hill in the evening',
    'A red car [[066,123,456,789]] on a hill in the evening',
    '<p>A red car</p> [SEG] on a hill in the evening',
    '<CAPTION>A red car on a hill in the evening',
    'A red car on a hill in the evening<pad><pad><pad>',
    'ĠAĠredĠcarĠonĠaĠhillĠinĠtheĠevening',
    'A&nbsp;red car on a hill in the evening',
    'Certainly. A red car on a hill in the evening',
    'Certainly! Here is a caption for the image: A red car on a hill in the evening',
    "Sure, here's a short description:\n\nA red car on a hill in the evening",
    'Of course! A red car on a hill in the evening',
    'Okay, A red car on a hill in the evening',
    "I'd be happy to help! A red car on a hill in the evening",
    'Caption: A red car on a hill in the evening',
    'Short caption: A red car on a hill in the evening',
    'The caption for this image is: "A red car on a hill in the evening"',
    'Final answer: A red car on a hill in the evening',
    'Here is one sentence describing the picture as a caption: A red car on a hill in the evening',
    'A red car on a hill in the evening\n\n(Word count: 8)',
    '\\boxed{A red car on a hill in the evening}',
    'Question: What is in the image? Answer: A red car on a hill in the evening',
    'Q: Describe the image.\nA: A red car on a hill in the evening',
    'Short: A red car on a hill in the evening',
    'Title: Evening hill\nCaption: A red car on a hill in the evening',
    'Image: A red car on a hill in the evening',
    'Description - A red car on a hill in the evening',
    '<image>\nA red car on a hill in the evening',
    '<|vision_start|><|image_pad|><|vision_end|>A red car on a hill in the evening',
    "<img src='x.png' alt='y'> A red car on a hill in the evening",
    '![A red car on a hill in the evening](image.png)',
    '<caption>A red car on a hill in the evening</caption>',
    'A red car on a hill in the evening </answer>',
    'Final Answer: **A red car on a hill in the evening**',
    'Answer: {"caption": "A red car on a hill in the evening"}',
    'json\n{"caption": "A red car on a hill in the evening"}',
    '{"captions": [{"text": "A red car on a hill in the evening", "score": 0.8}]}',
    '{"image": {"caption": "A red car on a hill in the evening"}}',
    '{"Caption": "A red car on a hill in the evening",}',
    '{caption: A red car on a hill in the evening}',
    'caption = "A red car on a hill in the evening"',
    '["A red car on a hill in the evening", "A car in the evening"]',
    '&lt;think&gt;hm&lt;/think&gt;A red car on a hill in the evening',
    "A red car on a hill in the evening\n\n*Note: I can't identify people.*",
    "Alright! Here's my attempt at a caption: A red car on a hill in the evening",
    'Here you go: A red car on a hill in the evening',
    'Here you go! A red car on a hill in the evening',
    'Here is what I see: A red car on a hill in the evening',
    "Here's the description you asked for:\nA red car on a hill in the evening",
    'Let me describe the image: A red car on a hill in the evening',
    "Let's see. A red car on a hill in the evening",
    'System: You are a helpful assistant.\nUser: Describe.\nAssistant: A red car on a hill in the evening',
    '### Assistant: A red car on a hill in the evening',
    '<|assistant|>: A red car on a hill in the evening',
    'ASSISTANT: A red car on a hill in the evening',
    '<bos><start_of_turn>user\nDescribe<end_of_turn>\n<start_of_turn>model\nA red car on a hill in the evening',
    '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nDescribe<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA red car on a hill in the evening',
    'A red car on a hill in the evening<|fim_middle|>',
    'A red car on a hill in the evening</s><s>',
    'A red car on a hill in the evening [end of text]',
    'A red car on a hill in the evening<0x0A>',
    'A red car on a hill in the evening\\n',
    'A red car on a hill\\nin the evening',
    '<|ref|>A red car<|/ref|><|det|>[[12, 33, 455, 900]]<|/det|> on a hill in the evening',
    "[{'role': 'assistant', 'content': 'A red car on a hill in the evening'}]",
    '{"role": "assistant", "content": "A red car on a hill in the evening"}',
    '{"choices": [{"message": {"content": "A red car on a hill in the evening"}}]}',
]  # fmt: skip

# Answers that contain "A red car on a hill."
WITH_CLOSINGS = [
    'A red car on a hill. Let me know if you need more details!',
    'A red car on a hill. I hope this helps!',
    'A red car on a hill.\n\nWould you like me to add anything else?',
    'A red car on a hill. If you need another version, please let me know.',
    'A red car on a hill. Please feel free to ask. Have a great day!',
    'A red car on a hill.\n\nNote: this description is based on the visible content.',
    "Certainly. A red car on a hill. Let me know if you'd like any changes.",
    "Great question! Here's the caption: A red car on a hill.",
    'A red car on a hill. [End of caption]',
    'A red car on a hill.\n\n---\n\nLet me know if you would like it shorter!',
    'A red car on a hill. Is there anything else I can help you with?',
    'Here\'s a short caption:\n\n**"A red car on a hill."**\n\nLet me know if you\'d like it more poetic or detailed!',
]  # fmt: skip

# Answers that contain "A brown dog runs across a lawn."
DOG = [
    '<thought>A dog, I think.</thought> A brown dog runs across a lawn.',
    '<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nDescribe<|im_end|>\n<|im_start|>assistant\nA brown dog runs across a lawn.<|im_end|>',
    'A brown dog runs across a lawn.<|endoftext|><|endoftext|><|endoftext|>',
    '<start_of_image>A brown dog runs across a lawn.<end_of_turn>',
    '<|begin_of_text|>A brown dog runs across a lawn.<|end_of_text|>',
    "Sure thing! Below is the caption you requested:\n\n> A brown dog runs across a lawn.\n\nFeel free to ask if you'd like any adjustments.",
    '**Answer:**\n\nA brown dog runs across a lawn.',
    '{\n  "description": "A brown dog runs across a lawn.",\n  "objects": ["dog"]\n}',
    '<DETAILED_CAPTION>A brown dog runs across a lawn.</s>',
    '<p>A brown dog runs across a lawn.</p><br>',
    'The description is as follows: A brown dog runs across a lawn.',
    'Caption (short): A brown dog runs across a lawn.',
    'A brown dog runs across a lawn. Do you want me to describe the background as well?',
    'A brown dog runs across a lawn. I hope this description is helpful! Let me know if you have any other questions.',
    '### Image Description\n\nA brown dog runs across a lawn.\n\n### Notes\n\nLet me know if you want changes.',
    '<|channel|>final<|message|>A brown dog runs across a lawn.',
    '</think>\n\nA brown dog runs across a lawn.',
    '<reasoning>\nstep 1\n</reasoning>\n<caption>A brown dog runs across a lawn.</caption>',
    '[/INST] A brown dog runs across a lawn.</s>',
    'AI Assistant: A brown dog runs across a lawn.',
    '<|assistant|>A brown dog runs across a lawn.<|endofassistant|>',
    'Model response: A brown dog runs across a lawn.',
    'Output: "A brown dog runs across a lawn."',
]  # fmt: skip

# Answers that contain the tags "car, ball, red car".
TAGS = [
    '- car\n- ball\n- red car',
    '1. car\n2. ball\n3. red car',
    '["car", "ball", "red car"]',
    '{"tags": ["car", "ball", "red car"]}',
    'Tags: car, ball, red car',
    'car<loc_1><loc_2>ball<loc_3><loc_4>red car<loc_5>',
    '<loc0012><loc0034> car ; <loc0001><loc0002> ball ; <loc0001><loc0003> red car',
    '[{"bbox_2d": [1,2,3,4], "label": "car"}, {"bbox_2d": [1,2,3,4], "label": "ball"}, {"label": "red car"}]',
    'Here are the tags:\n\n* car\n* ball\n* red car\n\nLet me know if you need more tags.',
]  # fmt: skip

# Language, answer and its caption.
LANGUAGES = [
    ('zh', '好的，以下是图片的描述：\n一辆红色的汽车停在山坡上。', '一辆红色的汽车停在山坡上。'),
    ('zh', '描述：一辆红色的汽车停在山坡上。如果您需要更多细节，请告诉我。', '一辆红色的汽车停在山坡上。'),
    ('zh', '<think>用户想要描述</think>一辆红色的汽车停在山坡上。', '一辆红色的汽车停在山坡上。'),
    ('ja', 'はい、以下は画像の説明です：丘の上の赤い車。', '丘の上の赤い車。'),
    ('ja', '説明：丘の上の赤い車。他にご質問があればお知らせください。', '丘の上の赤い車。'),
    ('ru', 'Конечно! Вот описание изображения: Красная машина на холме.', 'Красная машина на холме.'),
    ('ru', 'Описание: Красная машина на холме. Дайте знать, если нужно что-то ещё.', 'Красная машина на холме.'),
    ('de', 'Gerne! Hier ist eine Beschreibung: Ein rotes Auto auf einem Hügel.', 'Ein rotes Auto auf einem Hügel.'),
    ('de', 'Bildbeschreibung: Ein rotes Auto auf einem Hügel. Sag Bescheid, wenn du mehr brauchst!', 'Ein rotes Auto auf einem Hügel.'),
    ('fr', 'Bien sûr ! Voici une légende : Une voiture rouge sur une colline.', 'Une voiture rouge sur une colline.'),
]  # fmt: skip

# Answers that contain other captions: (answer, caption).
OTHERS = [
    ('A sign that reads &quot;OPEN&quot; &amp; a door', 'A sign that reads "OPEN" & a door'),
    ('A red car &#39;on&#39; a hill &mdash; in the evening', "A red car 'on' a hill — in the evening"),
    ('## Description\n\nA red car stands on a hill.\n\n## Background\n\nTrees and a lake lie behind it.', 'A red car stands on a hill. Trees and a lake lie behind it.'),
    ('1. **A red car** stands on a hill.\n2. **Trees** and a lake lie behind it.', 'A red car stands on a hill. Trees and a lake lie behind it.'),
    ('<think>\nLet\'s see: "OPEN" sign...\n</think>\n\nA shop window with an "OPEN" sign in red neon.', 'A shop window with an "OPEN" sign in red neon.'),
]  # fmt: skip

# Answers without a caption: all are rejected.
REJECTED = [
    ('en', 'empty', '<think>The user wants a caption of a red car'),
    ('en', 'error', 'CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.65 GiB total capacity)'),
    ('en', 'error', 'CUDA out of memory'),
    ('en', 'error', 'torch.cuda.OutOfMemoryError: CUDA out of memory.'),
    ('en', 'error', 'RuntimeError: CUDA error: device-side assert triggered'),
    ('en', 'error', 'RuntimeError: shapes do not match'),
    ('en', 'error', 'Traceback (most recent call last): File "x.py", line 1'),
    ('en', 'error', 'Internal Server Error'),
    ('en', 'error', '502 Bad Gateway'),
    ('en', 'error', '<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>'),
    ('en', 'error', 'HTTP 500'),
    ('en', 'error', 'Error code: 429 - rate limit'),
    ('en', 'error', 'Error: connection refused'),
    ('en', 'error', '[ERROR] model failed to load'),
    ('en', 'error', 'Rate limit exceeded. Please try again later.'),
    ('en', 'error', 'Request timed out.'),
    ('en', 'error', 'upstream connect error or disconnect/reset before headers'),
    ('en', 'refusal', 'No image provided.'),
    ('en', 'error', 'null'),
    ('en', 'error', 'None'),
    ('en', 'error', 'N/A'),
    ('en', 'error', '[object Object]'),
    ('en', 'refusal', 'No caption available'),
    ('en', 'error', '[insert caption here]'),
    ('en', 'refusal', 'The image is too blurry to describe.'),
    ('en', 'refusal', 'too blurry to describe'),
    ('en', 'refusal', 'Too dark to describe.'),
    ('en', 'refusal', 'This photo is too small and pixelated to identify anything.'),
    ('en', 'refusal', 'The image appears to be too dark for me to describe its contents'),
    ('en', 'refusal', 'It is difficult to tell what this image shows.'),
    ('en', 'refusal', 'Unable to describe the image.'),
    ('en', 'refusal', 'The image could not be loaded.'),
    ('en', 'refusal', 'The image appears to be blank.'),
    ('en', 'refusal', 'Not enough information to describe the image.'),
    ('en', 'refusal', 'This content violates our usage policy.'),
    ('en', 'markup', '{"error": "CUDA out of memory"}'),
    ('en', 'markup', '{"name": "describe", "arguments": {"x": 1}}'),
    ('en', 'too short', '<tool_call>{"name": "x"}</tool_call>'),
    ('en', 'empty', 'Certainly.'),
    ('en', 'empty', 'Sure!'),
    ('en', 'empty', 'Let me know if you need anything else.'),
    ('en', 'refusal', 'A street. The image is too blurry to describe further details.'),
    ('en', 'markup', '{"caption": "A red car on'),
    ('en', 'error', 'Segmentation fault (core dumped)'),
    ('en', 'error', 'The server is overloaded, please try again later'),
    ('en', 'error', "'NoneType' object has no attribute 'shape'"),
    ('en', 'error', 'GPU out of memory'),
    ('en', 'error', 'MPS backend out of memory'),
    ('en', 'error', 'OutOfMemoryError'),
    ('en', 'error', 'ValueError: too many values to unpack'),
    ('en', 'error', 'The model is currently loading'),
    ('en', 'refusal', "I'm sorry, the image is too blurry to describe."),
    ('en', 'refusal', 'The picture is too dark to make out anything.'),
    ('en', 'error', 'Error generating caption'),
    ('en', 'refusal', 'Failed to generate caption'),
    ('zh', 'refusal', '图片太模糊，无法描述。'),
    ('de', 'refusal', 'Das Bild ist zu unscharf, um es zu beschreiben.'),
    ('ru', 'refusal', 'Изображение слишком размытое, чтобы его описать.'),
    ('ja', 'refusal', '画像がぼやけていて説明できません。'),
    ('en', 'refusal', 'Image not found'),
    ('en', 'refusal', 'Image quality too low to describe.'),
    ('en', 'refusal', "It's too blurry to see anything clearly."),
    ('en', 'empty', '```\n```'),
    ('en', 'boilerplate', 'Caption:'),
    ('en', 'empty', '<|im_end|>'),
    ('en', 'error', 'Your caption here'),
    ('en', 'error', '...'),
    ('en', 'too short', '<loc0210><loc0001><loc0900><loc0512> car'),
    ('en', 'too short', '<point x="10.2" y="30.1" alt="car">car</point>'),
    ('en', 'too short', '<od>car<loc_1><loc_2><loc_3><loc_4></od>'),
    ('en', 'error', 'ERROR 2024-01-01 12:00:00 worker crashed'),
    ('en', 'error', '[2024-01-01 12:00:00] ERROR: failed'),
    ('en', 'error', 'RESOURCE_EXHAUSTED: out of memory'),
    ('en', 'error', 'Quota exceeded for quota metric'),
    ('en', 'error', 'cuda runtime error (2) : out of memory'),
    ('en', 'error', 'Exception occurred while processing the request'),
    ('en', 'error', 'An error occurred while processing your request.'),
    ('en', 'error', 'Sorry, something went wrong.'),
    ('en', 'error', 'Service Unavailable'),
    ('en', 'error', 'Gateway Timeout'),
    ('en', 'error', 'Request failed with status code 500'),
    ('en', 'error', 'Bad request'),
    ('en', 'error', 'Max retries exceeded with url: /v1/chat'),
    ('en', 'error', "ConnectionResetError(104, 'Connection reset by peer')"),
    ('en', 'error', 'torch.OutOfMemoryError: CUDA out of memory. Tried'),
    ('en', 'error', 'Not enough memory'),
    ('en', 'error', 'out of memory'),
    ('en', 'too short', 'OOM'),
    ('en', 'refusal', 'The image is blurry and hard to make out.'),
    ('en', 'refusal', 'This image is too dark to see anything.'),
    ('en', 'refusal', 'The image quality is too poor to describe.'),
    ('en', 'refusal', 'Cannot determine the contents of this image.'),
    ('en', 'refusal', "I can't tell what this is."),
    ('en', 'refusal', 'The image is not clear enough to describe.'),
    ('en', 'refusal', 'Nothing to describe.'),
    ('en', 'refusal', 'The picture is too small to be described.'),
    ('en', 'refusal', 'There is no visible content in this image.'),
    ('en', 'refusal', "It's impossible to say what is shown."),
    ('en', 'refusal', 'unable to determine'),
    ('en', 'refusal', 'The image is extremely blurry, making it difficult to identify any objects.'),
    ('en', 'refusal', 'Due to the low resolution, it is hard to tell what is shown.'),
]  # fmt: skip

# Lines of servers, of Python and of shells: no caption has them alone.
ERROR_LINES = [
    "HTTP 429 Too Many Requests",
    "HTTP/1.1 503 Service Unavailable",
    "HTTP/2 200",
    "HTTP error 404: Not Found",
    "Status code: 413 Payload Too Large",
    "429 Too Many Requests",
    "401 Unauthorized",
    "408 Request Timeout",
    "429 Client Error: Too Many Requests for url: http://x/v1",
    "list index out of range",
    "pop index out of range",
    "division by zero",
    "index 4 is out of bounds for axis 0 with size 3",
    "invalid literal for int() with base 10: 'a'",
    "name 'model' is not defined",
    "No module named 'torch'",
    "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)",
    "[Errno 28] No space left on device",
    "Killed",
    "killed.",
    "Aborted (core dumped)",
    "Terminated",
    "bash: caption: command not found",
    "bash: line 1: 4711 Killed",
    "/bin/sh: 1: ollama: not found",
    "python: can't open file 'x.py': [Errno 2] No such file or directory",
    "curl: (7) Failed to connect to localhost port 8000",
    "No space left on device",
    "Permission denied",
    "Broken pipe",
    "Process finished with exit code 137",
]

# Captions that people write, with words of the lists above.
LEGITIMATE = [
    "A T-shirt with the text <think> different printed on it hangs on a white wall",
    "A poster with the words <thinking> aloud in blue on a door",
    "A mug with the text </think> over a sad face on a desk",
    "A T-shirt that reads HTTP 404",
    "HTTP 404 printed on a black T-shirt",
    "429 too many requests in white letters on a mug",
    "Killed deer next to a hunter in a forest",
    "Permission denied stamp on a paper form",
    "A terminal that shows list index out of range",
    "List index out of range in red letters on a screen",
    "Broken pipe under a kitchen sink",
    "404 not found neon sign over a bar",
    "Bash: a street party with red lanterns",
    "Python on a branch in a zoo",
    'A sign that reads "CUDA out of memory" on a wall',
    'A person saying "let me know" into a phone',
    'A terminal window with the error CUDA out of memory in white letters',
    'CUDA out of memory in red letters on a laptop screen',
    '"CUDA out of memory" written on a whiteboard',
    'A text message that reads: Let me know if you need a ride',
    'A screen that shows "<think>" in green letters',
    'A T-shirt with the text "</think>" on the front',
    'A page of code with the line "<|im_end|>" marked in yellow',
    'A man asks his friend to let me know about the trip',
    'A woman who is certainly happy on a beach',
    'Certainly a cold day, two people in thick coats',
    'A dog too small to see over the fence',
    'A face too blurry to recognize behind a rainy window',
    'A sign too far away to read hangs above a door',
    'An error message on a blue screen',
    'Error 404 page of a website with a sad robot',
    'Internal server error page on a grey laptop',
    'A blank page in a notebook',
    'A JSON file open in an editor',
    'An editor with the text {"caption": "A cat"} on line 3',
    'A whiteboard with the list [1, 2, 3, 4] in blue',
    'A page with the formula x < y and a > b',
    'AT&T logo on a building',
    'A man in a red shirt with the number #1 on his back',
    '1. FC Köln fans wave red flags in a stadium',
    'A model: long dress, red shoes, white wall',
    'Assistant referee with a yellow flag on a pitch',
    'The assistant: a man in a white coat hands over a tool',
    'A user manual on a desk next to a cup of tea',
    'A heading that reads # Hello in large letters',
    'A page with **** in a password field',
    'A road sign with 50 & 80 on it',
    'The image of Jesus on a wooden cross',
    'Thank you for your order card with a red ribbon',
    'Let me know, a book cover with a yellow bird',
    'Sure deodorant on a bathroom shelf',
    'Hello, Dolly! poster with a woman in red',
    'Of Course I Love You, a greeting card with a bear',
    'Okay sign made by the hand of a diver',
    "Let's go! Would you like a cup of tea? is written on a mug",
    'Note pinned to a fridge with a magnet',
    'If you can read this, a bumper sticker on a red car',
    'A chat window: user asks about the weather, assistant answers',
    'Null Island buoy in the ocean',
    'None of the chairs is taken in the empty hall',
    'Unknown soldier memorial with flowers',
    'A dog. The grass is too tall to see its legs.',
    'The image on the wall is a portrait of a queen',
    'Failed bridge over a river after a flood',
    'Error bars on a plot with three curves',
    'Out of memory, a surreal painting of melting clocks',
    'An out of focus street at night',
    'A photo too dark to see the faces, only two outlines by the window',
    'End of the road sign in the desert',
    'Connection closed sign on a train door',
    'Traceback of a hiking route on a map',
    'Forbidden City in Beijing at dawn',
    'Forbidden fruit, a still life with an apple',
    'A man holding a <b> key cap',
    'Answer sheet with blue marks and a pencil',
    'Description plate next to a bronze statue',
    'Tags hang from a rack of dresses',
    'A neon sign: OPEN',
    'Text on a wall: no parking',
    'Caption contest page of a magazine',
    'A server is busy carrying plates in a crowded restaurant',
    'The server is busy with two tables in a small cafe',
    'The engine is not loaded on the truck yet',
    'The model is busy with her hair in front of a mirror',
    'A stop sign [0.5 km] on a road',
    'A tag list printed on a wall',
    'Prompt book of a theatre, open at page 3',
    'A screenshot of a chat. The first message reads "Sure, let me know if you need anything else!"',
    "A phone with the message: Hope this helps! next to a cup of tea",
    "A table with two columns: <10 and >20 in bold letters",
    "A photo of a monitor that displays C:\\new and D:\\temp in green",
    "The fox & the hound, a book cover in brown",
    "A doctor answers questions of her patient in a bright room",
    "A student is happy to help an old man across the street",
    "Two people ask if there is anything left at a market stall",
]  # fmt: skip


@pytest.mark.parametrize("text", WRAPPED, ids=range(len(WRAPPED)))
def test_markup_and_polite_words_are_removed(text):
    assert unwrap(text, "short", "en") == CAPTION


@pytest.mark.parametrize("text", WITH_CLOSINGS, ids=range(len(WITH_CLOSINGS)))
def test_closings_of_assistants_are_removed(text):
    assert unwrap(text, "medium", "en") == "A red car on a hill."


@pytest.mark.parametrize("text", DOG, ids=range(len(DOG)))
def test_a_sentence_is_taken_out_of_several_layers(text):
    assert unwrap(text, "medium", "en") == "A brown dog runs across a lawn."


@pytest.mark.parametrize("text", TAGS, ids=range(len(TAGS)))
def test_lists_and_detected_objects_become_tags(text):
    assert unwrap(text, "tags", "en") == "car, ball, red car"


@pytest.mark.parametrize(("lang", "text", "caption"), LANGUAGES)
def test_openings_and_closings_of_other_languages_are_removed(lang, text, caption):
    assert unwrap(text, "short", lang) == caption
    assert check_caption(caption, "short", lang) is None


@pytest.mark.parametrize(("text", "caption"), OTHERS)
def test_other_answers_become_their_captions(text, caption):
    assert unwrap(text, "medium", "en") == caption


@pytest.mark.parametrize(("lang", "code", "text"), REJECTED, ids=range(len(REJECTED)))
def test_answers_without_a_caption_are_rejected(lang, code, text):
    caption = unwrap(text, "short", lang)
    found = check_caption(caption, "short", lang)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize("text", ERROR_LINES, ids=range(len(ERROR_LINES)))
@pytest.mark.parametrize("level", ["short", "tags"])
def test_lines_of_servers_python_and_shells_are_errors(level, text):
    found = check_caption(unwrap(text, level, "en"), level, "en")
    assert found is not None
    assert found.code == "error"


@pytest.mark.parametrize(
    "text",
    [
        "<think>The user asks for a caption of",
        "<|im_start|>assistant\n<think>\nThe user asks",
        "assistant\n<think>The user asks",
        "<s><thinking>The user asks",
        "[THINK]The user asks",
        "Thinking...\nThe user asks",
    ],
)
def test_an_unclosed_tag_at_the_start_is_reasoning(text):
    assert unwrap(text, "short", "en") == ""


@pytest.mark.parametrize("text", LEGITIMATE, ids=range(len(LEGITIMATE)))
def test_legitimate_captions_are_unchanged_and_accepted(text):
    assert unwrap(text, "medium", "en") == text
    assert check_caption(text, "short", "en") is None


def test_captions_of_nano_are_unchanged():
    for index in range(60):
        for lang, levels in all_captions(draw_scene(5, index), index).items():
            for level, text in levels.items():
                assert unwrap(text, level, lang) == text


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "<|",
        "[[",
        "{",
        "[",
        "**",
        "`",
        "Let me know. ",
        '"',
        "<p>",
        "&amp;",
        "the ",
        "x",
        "\n- a",
    ],
)
def test_long_answers_take_little_time(piece):
    text = (piece * 20_000)[:20_000]
    start = time.process_time()
    check_caption(unwrap(text, "detailed", "en"), "detailed", "en")
    remove_reasoning(piece * 50_000)
    assert time.process_time() - start < 5


def test_a_quoted_tag_in_reasoning_does_not_end_it():
    assert unwrap('<think>They ask for "</think>" tags.</think>A red car on a hill') == "A red car on a hill"
    assert unwrap("<think>nested <think>thoughts</think> of a red car on a hill") == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("A red car", "A red car"),
        ([{"type": "text", "text": "A red car"}], "A red car"),
        ([{"type": "text", "text": "A red"}, {"type": "text", "text": "car"}], "A red car"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "A red car"}], "A red car"),
        ([{"type": "output_text", "text": "A red car"}], "A red car"),
        (["A red ", "car"], "A red car"),
        ({"type": "text", "text": {"value": "A red car"}}, "A red car"),
        ([], None),
        ([{"type": "image_url", "image_url": {"url": "x"}}], None),
        (7, None),
        (None, None),
    ],
)  # fmt: skip
def test_text_is_read_from_each_form_of_content(content, text):
    assert message_text(content) == text


def test_an_answer_in_parts_is_read():
    endpoint = Endpoint(lambda *_: (200, said([{"type": "text", "text": " A red car "}])))
    try:
        (answer,) = asked(endpoint, [question()])
    finally:
        endpoint.close()
    assert (answer.text, answer.error) == ("A red car", None)


def test_wrapped_answers_of_an_endpoint_become_captions_and_are_counted(lumina, tmp_path):
    from PIL import Image

    answers = [WRAPPED[0], CAPTION, "CUDA out of memory. Tried to allocate 2.00 GiB", "<think>hm, a red car"]
    for number in range(len(answers)):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")

    def reply(_, request):
        place = json.dumps(request).encode()
        return 200, said(answers[next(n for n, url in urls.items() if url.encode() in place)])

    from lumina_cli.core.unicap.engines.openai import data_url

    urls = {n: data_url(Image.new("RGB", (9, 9), (n, 0, 0))) for n in range(len(answers))}
    endpoint = Endpoint(reply)
    words = (
        "--engine",
        "openai",
        "--endpoint",
        endpoint.url,
        "--levels",
        "short",
        "--retries",
        0,
        "--max-bad-rate",
        1,
    )
    try:
        code, (stats,), _ = lumina(tmp_path, *words, "--out", tmp_path / "rows.jsonl")
    finally:
        endpoint.close()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (code, stats["unwrapped"], stats["rejected"]) == (0, 1, {"error": 1, "empty": 1})
    assert [row["captions"].get("en") for row in rows] == [{"short": CAPTION}, {"short": CAPTION}, None, None]
    assert rows[3]["rejected_captions"][0]["text"] == "<think>hm, a red car"


def test_a_joint_answer_after_reasoning_is_read():
    from lumina_cli.core.unicap.structured import parse_captions

    text = '<think>{"en": {"short": "no"}}</think>```json\n{"en": {"short": "A red car"}}\n```<|im_end|>'
    assert parse_captions(text, [("en", "short")]) == {("en", "short"): "A red car"}
