"""Self-contained HTML pages from the templates in `pipeline/pages/templates/`: no network access, light and dark."""

from typing import Any

from pipeline.fields import SIGNATURE


def render(template: str, **values: Any) -> str:
    """A page from a template; every value is escaped unless the template says otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(signature=SIGNATURE, **values)
    return page.encode(errors="surrogateescape").decode(errors="replace")  # file names need not be UTF-8
