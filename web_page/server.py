"""What serves the page: Gradio's server, and what stands before it."""

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from planning.watching.reports import report_at
from shared.errors import UserError
from web_page.markup import CSS, NARROW_EDGES, TAKE_ANY_FILE
from web_page.page import build_page
from web_page.run import Run

MOST_BYTES = 250_000_000  # of an upload
UPLOADS = ("/upload", "/component_server")


def serve(run: Run, host: str, port: int | None) -> gr.Blocks:
    """The page, served from a thread of its own until it is closed. Raises UserError where the port is taken."""
    page = build_page(run)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, theme=theme, css=CSS, show_error=True,
            footer_links=[], run_history=False, prevent_thread_lock=True, quiet=True,
            head=NARROW_EDGES + TAKE_ANY_FILE,
            app_kwargs={"middleware": [Middleware(UploadLimit), Middleware(Reports)]},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot serve on {host}, port {port or 'from 7860 on'}: {error}. Try another --port") from None
    return page


class UploadLimit:
    """An ASGI application that refuses uploads of more than `MOST_BYTES` in our words, and passes on all else.

    A canvas sends what is painted to "/component_server".
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(UPLOADS):
            size = Headers(scope=scope).get("content-length", "of unknown size")
            if not size.isdecimal() or int(size) > MOST_BYTES:
                answer = PlainTextResponse(
                    f"the upload is too large ({size} bytes), and this page takes {MOST_BYTES / 1e6:,.0f} MB: make the "
                    "picture smaller, or save it as a JPEG",
                    status_code=413,
                )
                return await answer(scope, receive, send)
        await self.app(scope, receive, send)


class Reports:
    """An ASGI application that gives out the pages which plans and trainings wrote, and passes on all else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = report_at(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        await (self.app if path is None else FileResponse(path))(scope, receive, send)
