"""Who is answered, and what: the page's server, closed to everybody but a browser on this machine.

Gradio serves whatever any of its users may need; this page needs little of it. What Gradio would do unasked is told
where it is stopped.
"""

import contextlib
import os
import signal
import threading
from pathlib import Path

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmedagent_graph.images import MAX_BYTES

HERE = "127.0.0.1"
PAGE = {"/", "/config", "/theme.css", "/favicon.ico"}
PAGE |= {f"/gradio_api/{what}" for what in ("startup-events", "upload", "upload_progress", "cancel", "reset")}
PARTS = ("/assets/", "/static/", "/gradio_api/queue/", "/gradio_api/heartbeat/")
"""What is answered. Not: files, the API's description, proxying, monitoring, recording, code that edits itself."""
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page is made of both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",  # nobody clicks Approve through somebody else's page
    ]
)
"""The browser itself keeps the page from speaking to anybody but this server."""
CSS = Path(__file__).with_name("style.css")


def serve(room: gr.Blocks, port: int = 7860) -> None:
    """Serve the room on this machine until Ctrl-C, SIGTERM or the end of the terminal; then its images are removed.

    Args:
        room: what `build_app` returns.
        port: where, on the loopback interface.
    """
    _stop_as_by_ctrl_c()
    no_proxy = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{no_proxy},{HERE}".strip(",")  # Gradio asks itself if it is up
    for variable in ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_NUM_WORKERS", "GRADIO_MCP_SERVER"):
        os.environ.pop(variable, None)
    room.queue(api_open=False)
    try:
        room.launch(
            server_name=HERE,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            show_error=False,
            run_history=False,  # or every case is kept in the browser
            enable_monitoring=False,
            footer_links=[],
            pwa=False,
            mcp_server=False,
            ssr_mode=False,
            allowed_paths=[],
            max_file_size=MAX_BYTES,
            theme=_theme(),
            css=CSS.read_text(encoding="utf-8"),
            app_kwargs={
                "middleware": [Middleware(Door)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(f"port {port} is taken; give another") from error
    print(f"The consulting room is open at http://{HERE}:{port} (Ctrl-C closes it).", flush=True)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        room.close(verbose=False)


class Door:
    """Turns away who is not a page of this server, or asks for what the room has no need of.

    Without it, any web page that the user has open could post to the loopback address, or come to be read as it
    (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or turn away."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")  # any port: it may come through a tunnel
        ours = host.partition(":")[0] in (HERE, "localhost") and origin in (None, f"http://{host}")
        if not ours:
            return await PlainTextResponse("Not from here.", 403)(scope, receive, send)
        if path not in PAGE and not path.startswith(PARTS):
            return await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = MutableHeaders(scope=message)
                given["Content-Security-Policy"] = POLICY
                given["Referrer-Policy"] = "no-referrer"
                given["X-Content-Type-Options"] = "nosniff"
                kept = path.startswith(("/assets/", "/static/"))  # of Gradio's, and named by version or content
                given["Cache-Control"] = "max-age=86400" if kept else "no-store"
            await send(message)

        await self.app(scope, receive, answer)


def _stop_as_by_ctrl_c() -> None:
    """End the process in order, so that its temporary folders are removed, when it is told to end."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                signal.signal(number, signal.default_int_handler)


def _theme() -> gr.themes.Base:
    """Gradio's plain theme in the room's colours; its fonts come with Gradio, and are served from here."""
    theme = gr.themes.Base(
        font=[
            gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)),
            "system-ui",
            "sans-serif",
        ],  # its 600 lacks letters
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
    )
    theme.set(
        body_background_fill="#f6f7f8",
        body_background_fill_dark="#0e1419",
        body_text_color="#17212b",
        body_text_color_dark="#e6ebef",
        body_text_color_subdued="#566472",
        body_text_color_subdued_dark="#9aa8b5",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#161e26",
        background_fill_secondary="#ffffff",
        background_fill_secondary_dark="#161e26",
        border_color_primary="#dde2e7",
        border_color_primary_dark="#2a3641",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_color_dark="*body_text_color_subdued",
        block_info_text_size="*text_sm",
        input_background_fill="#ffffff",
        input_background_fill_dark="#161e26",
        input_border_color="#c9d1d8",
        input_border_color_dark="#374552",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_placeholder_color="#6d7a87",
        input_placeholder_color_dark="#8494a2",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px rgb(15 118 110 / 20%)",
        input_shadow_focus_dark="0 0 0 3px rgb(94 234 212 / 20%)",
        input_border_color_focus="#0f766e",
        input_border_color_focus_dark="#5eead4",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_dark="#14857b",
        button_primary_background_fill_hover="#0b5f58",
        button_primary_background_fill_hover_dark="#17988d",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="#eceff2",
        button_secondary_background_fill_hover_dark="#202b35",
        button_secondary_border_color="#c9d1d8",
        button_secondary_border_color_dark="#374552",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_large_text_size="15px",
        button_large_text_weight="600",
        button_medium_text_weight="400",
    )
    return theme
