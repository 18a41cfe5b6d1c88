"""Search as you type, in a browser: one page over the routes of `pipeline.service`. Nothing is loaded from elsewhere."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from pipeline.pages.kinds import WINDOWS
from pipeline.pages.render import render

if TYPE_CHECKING:
    from pipeline.service.http import Service

POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


def page_of(service: "Service") -> Callable[..., Any]:
    """What answers a browser with the page."""

    async def page(request: Request, asked: None) -> HTMLResponse:
        """The page, for browsers."""
        about = await service.index(request, None)
        title = f"{about.photos:,} photos in {', '.join(about.stores)}"
        content = render("app.html", title=title, about=about, note=WINDOWS.note if about.starter else "")
        # Else a browser that is started again shows run and stores of whatever was served here before.
        return HTMLResponse(content, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    return page
