"""The demo's synthetic dataset: rendered images of coloured shapes and digit signs, with questions, captions and conversations.

scene: the objects and their grid cells, sampled from a seed; large_scenes: larger ones, with small objects. scene_renderer: pixels.
scene_facts: facts without any language.
question_templates, question_phrasing, reasoning_conversations, scene_descriptions, vocabulary: English and Chinese text.
annotation_records, dataset_writer: the raw formats of VQA v2, LLaVA and AI Challenger, with ten answers per question.
"""
