"""Pre-training of the embedded demo's small parts on drawn scenes, from other seeds than the demo's own files."""
