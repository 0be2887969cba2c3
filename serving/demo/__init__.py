import os

# Set before gradio is imported, which reads it: no analytics are sent.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
