"""Paths of the modules in a VisionLanguageModel, and which of them form its parameter groups."""

from model.param_groups import GroupPaths

CONNECTOR, LANGUAGE_MODEL = "model.multi_modal_projector", "model.language_model"

GROUP_PATHS: GroupPaths = {"connector": (CONNECTOR,), "language": (LANGUAGE_MODEL, "lm_head.")}
