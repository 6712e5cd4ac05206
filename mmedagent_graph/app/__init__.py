"""A consulting room in the browser: `python -m mmedagent_graph.app` (extra `ui`).

    room.py     the page, and what its buttons do: `build_app(graph)`
    chart.py    what has happened in a consultation so far
    render.py   the chart as HTML
    picture.py  the graph as a drawing, with whoever is at work in it
    server.py   who is answered, and what is: `serve(build_app(graph))`

Invariant: nothing leaves this machine but to the models that the graph asks, and no image outlives the process.
"""

import os
import tempfile

UPLOADS = tempfile.TemporaryDirectory(prefix="mmedagent-uploads-")
"""Where uploads lie until they are in the image store: nobody else's to read, and gone when the process ends. Gradio's
own folder is shared, and stays."""

# before Gradio is imported, which reads both in many places
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
