"""Pre-train the demo's tiny SigLIP, CLIP, Qwen3 and Qwen3-VL on synthetic scenes of other seeds than the demo's dataset."""
